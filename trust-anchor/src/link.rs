//! Joining two clusters with a one-time token, without a credential that lasts crossing between them.
//!
//! ```text
//! creator: hawser link create                        joiner: hawser link accept TOKEN
//!   offers (stored: the secret's hash) ─ token ──by hand──▶ accept ─ TLS, verified by the token's pin ─┐
//!   redeem ◀── gateway's join door, which passes bytes ◀───────────────────────────────────────────────┘
//!     │ side (everything that a stranger says is checked) ─▶ used up ─▶ object ─▶ reply: our own side
//!     └─▶ <state>/<cluster>/links/<peer>.yaml                            joiner: side ─▶ object
//! ```
//!
//! On Kubernetes a Link is carried as a `manifest` instead, one in each direction.
//!
//! What crosses is each side's name, trust domain, public anchors and gateway addresses. The secret is worth nothing
//! once it was used, after ten minutes, or to whoever reads the store.

mod accept;
mod manifest;
mod object;
pub(crate) mod offers;
pub(crate) mod redeem;
mod side;
mod token;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use accept::{Acceptance, Accepted, accept};
pub use manifest::{Standing, offered, taken};
pub use object::{LinkFile, linked, remove};
pub use offers::{LIFETIME_MAX, Offer, OfferError, Wanted, list, register, revoke};
pub use side::Own;
pub use token::{Token, TokenError};

/// Where a cluster's Links lie.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinksConfig {
    /// Links that `hawser link` made: one file each, written here.
    pub directory: PathBuf,
    /// The cluster's own folder of objects: never written, but a peer that it names is not linked a second time.
    pub objects: PathBuf,
}
