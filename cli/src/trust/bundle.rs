//! `hawser trust bundle`: what a cluster is verified by, shown and carried by hand.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use hawser_api::TrustDomain;
use hawser_api::proto::trust::{AcceptBundleRequest, ShowBundleRequest};

use super::client::{Which, ask};
use crate::print;

/// Largest document that is read.
const DOCUMENT_MAX: u64 = hawser_api::bundle::DOCUMENT_MAX as u64;

/// Show a cluster's bundle, or accept a linked cluster's by hand when it can be learned in no other way.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BundleCommand {
    /// Print the bundle in force, and its SHA-256 as a pin on standard error.
    Show {
        /// A linked cluster's, as it is held here; otherwise the cluster's own.
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: Option<TrustDomain>,
        #[command(flatten)]
        which: Which,
    },
    /// Take a linked cluster's bundle from a file or from standard input, if it is the one that the pin names.
    Accept {
        /// The linked cluster.
        #[arg(long, value_name = "TRUST-DOMAIN")]
        trust_domain: TrustDomain,
        /// SHA-256 of the document, as `hawser trust bundle show` printed it there; carry it by another way.
        #[arg(long, value_name = "SHA256")]
        pin: String,
        /// The document; otherwise standard input.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
}

pub(crate) async fn run(command: &BundleCommand) -> Result<()> {
    match command {
        BundleCommand::Show { trust_domain, which } => {
            let trust_domain = trust_domain.as_ref().map(ToString::to_string).unwrap_or_default();
            let reply =
                ask!(which.one()?, show_bundle, ShowBundleRequest { trust_domain: trust_domain.clone() }).await?;
            // Byte for byte: `out` ends the line that the document itself ends with.
            print::out(reply.document.strip_suffix('\n').unwrap_or(&reply.document));
            print::note(format!("{}, pin {}", reply.trust_domain, reply.pin));
            Ok(())
        }
        BundleCommand::Accept { trust_domain, pin, file, which } => {
            let mut document = String::new();
            let read = match file {
                Some(path) => std::fs::File::open(path)
                    .and_then(|file| file.take(DOCUMENT_MAX + 1).read_to_string(&mut document))
                    .with_context(|| path.display().to_string()),
                None => std::io::stdin().lock().take(DOCUMENT_MAX + 1).read_to_string(&mut document).context("stdin"),
            };
            read?;
            let request =
                AcceptBundleRequest { trust_domain: trust_domain.to_string(), document, pin: pin.trim().to_owned() };
            let anchor = which.one()?;
            ask!(anchor, accept_bundle, request.clone()).await?;
            print::note(format!("{}: the bundle of {trust_domain} is handed to its mirror controller", anchor.name));
            Ok(())
        }
    }
}
