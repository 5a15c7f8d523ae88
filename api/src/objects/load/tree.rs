//! Where each field of a YAML document stands, so that a rule broken by a value names the line it is on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A document as places only.
#[derive(Debug)]
pub(super) enum Node {
    /// Fields by name, with the line of the name.
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    /// Items.
    List(Vec<Spanned<Node>>),
    /// A value.
    Leaf,
}

impl Node {
    /// The line (from 1, within the document) of a field such as `spec.ports[1].port`; of the deepest part of it that
    /// is there otherwise.
    pub(super) fn line(&self, path: &str) -> u64 {
        let mut at = self;
        let mut line = 1;
        for step in steps(path) {
            let Some((next, found)) = at.step(&step) else { break };
            (at, line) = (next, found);
        }
        line
    }

    fn step(&self, step: &Step<'_>) -> Option<(&Self, u64)> {
        match (self, step) {
            (Self::Map(fields), Step::Field(name)) => {
                let (key, value) = fields.iter().find(|(key, _)| key.value == *name)?;
                Some((&value.value, key.referenced.line()))
            }
            (Self::List(items), Step::Item(index)) => {
                items.get(*index).map(|item| (&item.value, item.referenced.line()))
            }
            _ => None,
        }
    }

    /// The path of the innermost field that begins on this line at or before this column.
    pub(super) fn path_at(&self, line: u64, column: u64) -> String {
        let mut best = String::new();
        self.search(&mut String::new(), (line, column), &mut best);
        best
    }

    fn search(&self, path: &mut String, at: (u64, u64), best: &mut String) {
        let here = |l: &serde_saphyr::Location| l.line() == at.0 && l.column() <= at.1;
        let length = path.len();
        match self {
            Self::Map(fields) => {
                for (key, value) in fields {
                    let dot = if length == 0 { "" } else { "." };
                    path.push_str(dot);
                    path.push_str(&key.value);
                    if here(&key.referenced) || here(&value.referenced) {
                        best.clone_from(path);
                    }
                    value.value.search(path, at, best);
                    path.truncate(length);
                }
            }
            Self::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    if here(&item.referenced) {
                        best.clone_from(path);
                    }
                    item.value.search(path, at, best);
                    path.truncate(length);
                }
            }
            Self::Leaf => {}
        }
    }
}

enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// `metadata.labels[hawser.dev/export]` names a field whose name has dots in it; `spec.ports[1]` an item.
fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((name, after)) = inner.split_once(']') else { break };
            steps.push(name.parse().map_or(Step::Field(name), Step::Item));
            rest = after.strip_prefix('.').unwrap_or(after);
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            steps.push(Step::Field(name));
            rest = after.strip_prefix('.').unwrap_or(after);
        }
    }
    steps
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Places)
    }
}

struct Places;

impl<'de> Visitor<'de> for Places {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_path_and_paths_by_place() {
        let text = "kind: A\nmetadata:\n  labels:\n    hawser.dev/export: \"true\"\nspec:\n  ports:\n  - port: 1\n  - port: 2\n    name: b\n";
        let tree: Node = serde_saphyr::from_str(text).unwrap();
        assert_eq!(tree.line("kind"), 1);
        assert_eq!(tree.line("metadata.labels[hawser.dev/export]"), 4);
        assert_eq!(tree.line("spec.ports[1].name"), 9);
        assert_eq!(tree.line("spec.ports[1].absent"), 8);
        assert_eq!(tree.line("nothing"), 1);
        assert_eq!(tree.path_at(9, 11), "spec.ports[1].name");
        assert_eq!(tree.path_at(7, 11), "spec.ports[0].port");
    }
}
