//! `hawser install`: prints what a Kubernetes cluster needs, for `kubectl apply --server-side -f -`.
//!
//! ```text
//! crds        CustomResourceDefinitions (made in api/src/crd)
//! rbac        who may do what, each verb with its reason
//! documents   all of it in order ─▶ text  (the same bytes for the same values)
//! installed   with --context: definitions of the standard that are newer than ours are left out
//! ```
//!
//! Nothing is written into a cluster: what is printed can be read, kept in a repository and compared first.

mod documents;
mod installed;
pub(crate) mod rbac;
#[cfg(test)]
mod tests;
mod text;

use anyhow::Result;
use clap::Args;

use crate::kubernetes::KubeArgs;
use crate::print;

/// Print the manifests that Hawser needs in a Kubernetes cluster.
///
/// Apply them with `hawser install | kubectl apply --server-side -f -`. The output is the same for the same version and
/// the same values.
///
/// With --context or --kubeconfig that cluster is looked at first: definitions of the multi-cluster services API that are
/// there in a later version are left out then. Otherwise they are printed always.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Only the CustomResourceDefinitions.
    #[arg(long)]
    crds_only: bool,
    #[command(flatten)]
    kubernetes: KubeArgs,
}

/// Prints them.
pub(crate) async fn run(args: &Install) -> Result<()> {
    let mut definitions = hawser_api::crd::definitions();
    if args.kubernetes.asked() {
        definitions = installed::leave_out(definitions, &args.kubernetes.cluster().await?).await?;
    }
    let mut documents = documents::definitions(&definitions)?;
    if !args.crds_only {
        documents.insert(0, documents::namespace()?);
        documents.push(documents::bundle()?);
        documents.extend(rbac::documents()?);
    }
    print::out(text::stream(&documents).trim_end());
    Ok(())
}
