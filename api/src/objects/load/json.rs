//! One object as an API server gives it: the same kinds, types and rules as in files.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Problem, Readable, check, clip_long, known, remedy_for, whole_file};
use crate::objects::Object;

struct Json<'v>(&'v Value);

impl Readable for Json<'_> {
    type Fault = serde_json::Error;
    fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(self.0)
    }
}

/// Reads an object without looking at the rules: one that was made by Hawser itself.
///
/// `origin` says what it is, such as `Service shop/checkout`; it stands where a file's name would.
pub fn unchecked(origin: &str, value: &Value) -> Result<Object, Vec<Problem>> {
    let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    match known(&Json(value), word("apiVersion"), word("kind")) {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err(vec![whole_file(origin, "is of a kind that Hawser does not read", "take it out")]),
        Err(error) => {
            let reason = clip_long(&error.to_string());
            let remedy = remedy_for(&reason);
            Err(vec![whole_file(origin, &reason, remedy)])
        }
    }
}

/// Reads an object of a user's, under the same rules as a file's.
pub fn checked(origin: &str, value: &Value) -> Result<Object, Vec<Problem>> {
    let object = unchecked(origin, value)?;
    let broken = check::object(&object);
    if broken.is_empty() {
        return Ok(object);
    }
    let problem = |broken: super::Broken| Problem {
        file: origin.to_owned(),
        line: 0,
        field: broken.field,
        reason: broken.reason,
        remedy: broken.remedy,
    };
    Err(broken.into_iter().take(super::PROBLEMS_MAX).map(problem).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_held_to_the_same_rules_in_both_forms() {
        let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: PORT}]}";
        for (port, good) in [(80, true), (0, false)] {
            let from_file = super::super::parse("a.yaml", &yaml.replace("PORT", &port.to_string()));
            let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
                "spec": {"ports": [{"port": port}]}});
            let from_server = checked("Service shop/a", &value);
            assert_eq!(from_server.is_ok(), good);
            match (from_file, from_server) {
                (Ok(file), Ok(server)) => assert_eq!(file[0].object, server),
                (Err(file), Err(server)) => {
                    let said = |p: &Problem| (p.field.clone(), p.reason.clone(), p.remedy.clone());
                    assert_eq!(said(&file[0]), said(&server[0]));
                    assert_eq!(server[0].to_string(), "Service shop/a: spec.ports[0].port: is 0");
                }
                (file, server) => panic!("{file:?} and {server:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_and_how_to_mend_it() {
        let link = json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "Link", "metadata": {"name": "east"},
            "spec": {"trustDomain": "east.example", "gateway": []}});
        let problems = checked("Link east", &link).unwrap_err();
        assert!(problems[0].reason.contains("unknown field `gateway`"), "{problems:?}");
        assert!(problems[0].remedy.contains("correct the field's name"), "{problems:?}");
        assert!(checked("Pod a", &json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    }
}
