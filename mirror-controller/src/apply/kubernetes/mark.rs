//! The mark on what we made: for whom, and under which name.
//!
//! ```text
//! hawser.dev/owner: "<UID of the Link> <namespace>/<name>"
//! ```
//!
//! The name is in it because marks are copied: who copies a mirror under another name, or into another namespace, has an
//! object of their own, which nobody takes from them.

use std::collections::BTreeMap;

use hawser_api::labels;

/// The mark of an object that is made for the Link of this UID.
pub fn of(uid: &str, namespace: &str, name: &str) -> String {
    format!("{uid} {namespace}/{name}")
}

/// The UID of the Link for which an object of this name was made; `None`: we did not make it.
pub fn owner<'a>(annotations: &'a BTreeMap<String, String>, namespace: &str, name: &str) -> Option<&'a str> {
    let (uid, of) = annotations.get(labels::OWNER)?.split_once(' ')?;
    let bound = of.split_once('/') == Some((namespace, name));
    (bound && !uid.is_empty()).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_holds_for_the_name_that_it_was_made_for_and_for_no_copy() {
        let marked = |mark: &str| BTreeMap::from([(labels::OWNER.to_owned(), mark.to_owned())]);
        let mark = marked(&of("1-2", "shop", "a-east"));
        assert_eq!(owner(&mark, "shop", "a-east"), Some("1-2"));
        assert_eq!(owner(&mark, "shop", "copy"), None);
        assert_eq!(owner(&mark, "other", "a-east"), None);
        for broken in ["", "1-2", " shop/a-east", "1-2 shop", "shop/a-east"] {
            assert_eq!(owner(&marked(broken), "shop", "a-east"), None, "{broken:?}");
        }
        assert_eq!(owner(&BTreeMap::new(), "shop", "a-east"), None);
    }
}
