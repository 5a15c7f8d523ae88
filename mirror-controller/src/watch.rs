//! What fills the world: one file a source. Nothing here decides.

pub mod catalog;
pub mod files;
pub mod gateways;
pub mod last_known;
pub mod links;
