//! A key that is suspected, or lost.

use std::time::SystemTime;

use hawser_runtime::clock;
use hawser_tunnel::verify::AuthorityId;

use super::Driver;
use crate::authority::Authority;
use crate::rotate::course::{Course, authority_id};
use crate::rotate::{Level, Refused, Rotation, State};

impl Driver {
    /// Signs with the prepared successor at once, and has everybody renew. The old key verifies until that is done.
    /// Under the same root everybody can verify the successor already; a root cannot be replaced without proof.
    pub(crate) fn taint(&mut self, id: AuthorityId, authority: &Authority, now: SystemTime) -> Result<(), Refused> {
        let signer = authority.intermediate.load_full();
        if self.roots.iter().any(|root| authority_id(root) == Some(id)) {
            return Err(Refused::new(
                "a root is replaced only when everybody has loaded the next one",
                "hawser trust rotate root; to stop trusting it now, with all that hangs under it: hawser trust revoke authority",
            ));
        }
        if signer.as_ref().is_none_or(|signer| signer.id() != id) {
            return Err(Refused::new("this authority does not sign here", "see which one does: hawser trust status"));
        }
        let prepared = self.course.running().filter(|rotation| rotation.level == Level::Intermediate);
        let Some(rotation) = prepared.filter(|_| self.successor.is_some()) else {
            return Err(Refused::new(
                "no successor is prepared",
                "hawser trust rotate intermediate --pause-at prepared, have its request signed, and taint then",
            ));
        };
        let rotation = Rotation {
            state: State::Active,
            since_ms: clock::millis(now),
            pause_at: State::Retired,
            ..rotation.clone()
        };
        authority.audit("taint", &format!("authority {id}"), "the prepared successor signs", now)?;
        let reissue_before_ms = clock::millis(now);
        let course = Course { rotation: Some(rotation), reissue_before_ms, ..self.course.clone() };
        self.keep(course, authority)?;
        self.look(authority, now);
        Ok(())
    }

    /// A key that signs here, or is the only root, can be revoked when another has taken its place.
    pub(crate) fn may_revoke(&self, key: &str, authority: &Authority) -> Result<(), Refused> {
        let signer = authority.intermediate.load_full();
        let signs = signer.is_some_and(|signer| [signer.id(), signer.anchor()].iter().any(|id| id.to_string() == key));
        if !signs {
            return Ok(());
        }
        Err(Refused::new(
            "this cluster signs with it: nobody here would have a certificate",
            "first let another take its place: hawser trust taint AUTHORITY with a prepared successor, or hawser trust \
             rotate root; then revoke it",
        ))
    }
}
