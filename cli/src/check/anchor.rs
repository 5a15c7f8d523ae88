//! The names of the checks. Each stays what it is from release to release, stands in the JSON, and heads the passage of
//! `docs/check.md` that explains the check.

use std::fmt;

use serde::Serialize;

use super::{Finding, Outcome};

/// Which check a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Anchor {
    ClusterPresent,
    ProcessReady,
    ObjectsInForce,
    IdentityValid,
    TrustLoaded,
    TrustAnchorsValid,
    LinkCatalogFresh,
    LinkGatewaysAlive,
    LinkTrustCurrent,
    LinkClock,
    LinkImports,
    ExportCallable,
    MirrorCallable,
    ListenerBound,
    ApiReachable,
    CrdsCurrent,
    NamespacePresent,
    ControllersRunning,
    ControllersLeading,
    RbacSufficient,
    MirrorOrphaned,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

impl Anchor {
    /// It is as it should be.
    pub(super) fn good(self, description: impl Into<String>) -> Finding {
        self.bad(Outcome::Success, description, "", "")
    }

    /// It works, and somebody should look at it.
    pub(super) fn warning(
        self,
        description: impl Into<String>,
        error: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        self.bad(Outcome::Warning, description, error, hint)
    }

    /// Something does not work.
    pub(super) fn error(
        self,
        description: impl Into<String>,
        error: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        self.bad(Outcome::Error, description, error, hint)
    }

    /// As bad as `result` says.
    pub(super) fn bad(
        self,
        result: Outcome,
        description: impl Into<String>,
        error: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding { anchor: self, description: description.into(), result, error: error.into(), hint: hint.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/check.md");

    #[test]
    fn the_page_explains_every_check_under_its_name_and_no_other() {
        let headings: Vec<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let explained: BTreeSet<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
        assert_eq!(explained.len(), headings.len(), "a heading occurs twice, so that its anchor is not its name");
        let checks: BTreeSet<String> = Anchor::value_variants().iter().map(ToString::to_string).collect();
        assert_eq!(explained, checks);
    }

    #[test]
    fn the_name_in_json_is_the_one_that_is_shown() {
        for anchor in Anchor::value_variants() {
            assert_eq!(serde_json::to_value(anchor).unwrap(), anchor.to_string());
        }
    }
}
