//! The fabric's root and the clusters' intermediates.
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use hawser_api::SpiffeId;

use crate::fabric::Fabric;
use crate::state::State;
use crate::up::wanted::Kind;

/// Make and sign the certificates at the top of the hierarchy.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Make the root.
    Init,
}

pub(crate) fn run(_command: &Trust) -> Result<()> {
    anyhow::bail!("not yet")
}

pub(crate) fn register(_store: &Path, _kind: Kind, _identity: &SpiffeId) -> Result<String> {
    Ok("0".into())
}

pub(crate) fn ensure(_state: &State, _fabric: &Fabric, _alone: bool) -> Result<()> {
    let _ = PathBuf::new();
    Ok(())
}
