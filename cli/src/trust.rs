//! `hawser trust`: the top of the hierarchy by hand, and what `hawser up` does of it by itself.
//!
//! ```text
//! where the root lives            in the cluster
//! hawser trust init
//!                        ◀──────  hawser trust request west --trust-domain west.acme.example
//! hawser trust intermediate FILE
//!                        ──────▶  intermediate.crt beside the request, root.crt in <state>/root
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hawser_api::{ClusterName, SpiffeId, TrustDomain};
use hawser_runtime::clock;
use hawser_trust_anchor::hierarchy::{self, INTERMEDIATE_LIFETIME, Token, names};
use hawser_trust_anchor::join;

use crate::fabric::Fabric;
use crate::print;
use crate::state::{State, StateArg};

mod audit;
mod bundle;
mod client;
mod emergency;
mod rotate;
mod status;

/// A child uses its join token within a second of its start; the trust anchor may start as late as it does.
const JOIN_LIFETIME: Duration = Duration::from_secs(600);

/// Make, replace, revoke and look at everything that the fabric's trust rests on.
///
/// A fabric has one root, which signs one intermediate a cluster; `hawser up` makes both when it runs a whole fabric.
/// `init`, `request` and `intermediate` do it by hand, so that the root's key can stay on a machine of its own.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Make a fabric's root in the state directory: root/root.key and root/root.crt.
    Init {
        #[command(flatten)]
        state: StateArg,
        /// A name for people, shown in the root's subject.
        #[arg(long, default_value = "hawser")]
        name: String,
        /// Make the root that will take the place of the present one: root/next/root.key and root/next/root.crt.
        #[arg(long)]
        next: bool,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// Make a cluster's key and a request for its intermediate; the key stays here.
    Request {
        /// The cluster.
        cluster: ClusterName,
        /// Its trust domain: the cluster and the fabric domain, such as west.example.org.
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        state: StateArg,
    },
    /// Sign a request with the root in the state directory; writes intermediate.crt beside it.
    Intermediate {
        /// The request, intermediate.csr.
        #[arg(value_name = "FILE", required_unless_present = "cluster")]
        request: Option<PathBuf>,
        /// The request that this cluster of the state directory waits with.
        #[arg(long, value_name = "NAME", conflicts_with = "request")]
        cluster: Option<ClusterName>,
        /// Refuse a request for any other trust domain.
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: Option<TrustDomain>,
        /// Sign with the root in root/next.
        #[arg(long)]
        next: bool,
        #[command(flatten)]
        state: StateArg,
    },
    Status(status::StatusCommand),
    Rotate(rotate::Rotate),
    Provide(rotate::Provide),
    #[command(subcommand)]
    Revoke(emergency::Revoke),
    Taint(emergency::Taint),
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    #[command(subcommand)]
    Audit(audit::AuditCommand),
}

/// A token that makes the root's key and keeps it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TokenArgs {
    /// Let a token make and keep the key: its PKCS#11 library, such as /usr/lib/softhsm/libsofthsm2.so.
    #[arg(long, value_name = "FILE", requires_all = ["token", "pin_file"])]
    pkcs11_module: Option<PathBuf>,
    /// The token's label.
    #[arg(long, value_name = "LABEL", requires = "pkcs11_module")]
    token: Option<String>,
    /// File with the user's PIN.
    #[arg(long, value_name = "FILE", requires = "pkcs11_module")]
    pin_file: Option<PathBuf>,
}

impl TokenArgs {
    fn token(&self) -> Result<Option<Token>> {
        let (Some(module), Some(token), Some(pin_file)) = (&self.pkcs11_module, &self.token, &self.pin_file) else {
            return Ok(None);
        };
        // It is read again later, from anywhere.
        let absolute = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
        let (module, pin_file) = (absolute(module)?, absolute(pin_file)?);
        Ok(Some(Token { module, token: token.clone(), pin_file, label: String::new() }))
    }
}

/// Runs one of the commands.
pub(crate) async fn run(command: &Trust) -> Result<()> {
    match command {
        Trust::Init { state, name, next, token } => {
            init(&State::create(&state.state)?, name, *next, token.token()?.as_ref())?;
        }
        Trust::Request { cluster, trust_domain, state } => {
            let store = State::create(&state.state)?.cluster(cluster)?.trust_anchor();
            print::out(hierarchy::make_csr(&store, trust_domain)?.display());
            print::note("hint: where the root is: hawser trust intermediate FILE; then bring intermediate.crt back");
        }
        Trust::Intermediate { request, cluster, trust_domain, next, state } => {
            let state = State::existing(&state.state)?;
            let root = if *next { next_root(&state) } else { state.root_directory() };
            let request = match (request, cluster) {
                (Some(request), _) => request.clone(),
                (None, Some(cluster)) => waiting(&state.cluster(cluster)?.trust_anchor())?,
                (None, None) => bail!("no request is named"),
            };
            let signed = hierarchy::sign_intermediate(&root, &request, trust_domain.as_ref(), clock::now())?;
            print::out(signed.path.display());
            print::note(format!("an intermediate of {} until {}", signed.domain, day(signed.not_after)));
        }
        Trust::Status(command) => status::run(command).await?,
        Trust::Rotate(command) => rotate::run(command).await?,
        Trust::Provide(command) => rotate::provide(command).await?,
        Trust::Revoke(command) => emergency::revoke(command).await?,
        Trust::Taint(command) => emergency::taint(command).await?,
        Trust::Bundle(command) => bundle::run(command).await?,
        Trust::Audit(command) => audit::run(command)?,
    }
    Ok(())
}

fn init(state: &State, name: &str, next: bool, token: Option<&Token>) -> Result<()> {
    let root = if next { next_root(state) } else { state.root_directory() };
    let path = match token {
        Some(token) => hierarchy::init_root_on_token(&root, name, token, clock::now())?,
        None => hierarchy::init_root(&root, name, clock::now())?,
    };
    print::out(path.display());
    print::note(if next {
        "hint: hawser trust rotate root; keep both keys until it is over"
    } else {
        "keep root.key offline when the clusters have their intermediates; root.crt is public"
    });
    Ok(())
}

/// Where the root that comes lies.
fn next_root(state: &State) -> PathBuf {
    state.root_directory().join("next")
}

/// The request that a trust anchor waits with: of a rotation, or of its first intermediate.
fn waiting(store: &Path) -> Result<PathBuf> {
    let requests = [store.join("next"), store.to_owned()].map(|at| at.join(names::INTERMEDIATE_CSR));
    let found = requests.into_iter().find(|path| path.exists());
    found.with_context(|| {
        format!("{} has no request\nhint: make one: hawser trust rotate intermediate", store.display())
    })
}

fn day(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "-".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
}

/// Registers a one-time join token with a cluster's trust anchor.
pub(crate) fn register(store: &Path, identity: &SpiffeId) -> Result<String> {
    Ok(join::register(store, identity, JOIN_LIFETIME, clock::now())?)
}

/// Sees to it that every cluster has an intermediate. A whole fabric without a root gets one; a cluster that runs alone
/// belongs to somebody's fabric, so a root of its own would only look as if it worked.
pub(crate) fn ensure(state: &State, fabric: &Fabric, alone: bool) -> Result<()> {
    let root = state.root_directory();
    let has_key = hierarchy::has_key(&root);
    for declared in fabric.values() {
        let store = state.cluster(&declared.name)?.trust_anchor();
        let certificate = store.join(names::INTERMEDIATE_CERTIFICATE);
        let there = certificate.exists() && state.root_certificate().exists();
        if there && !(has_key && is_old(&certificate)) {
            continue;
        }
        if alone && !has_key {
            bail!(by_hand(state, &declared.name, &declared.trust_domain));
        }
        if !hierarchy::has_key(&root) {
            hierarchy::init_root(&root, declared.cluster.spec.fabric_domain.as_str(), clock::now())?;
            print::note(format!("made a root for {} in {}", declared.cluster.spec.fabric_domain, root.display()));
        }
        let sign = || {
            let request = hierarchy::make_csr(&store, &declared.trust_domain)?;
            hierarchy::sign_intermediate(&root, &request, Some(&declared.trust_domain), clock::now())
        };
        sign().with_context(|| format!("the intermediate of {}", declared.name))?;
    }
    Ok(())
}

/// Two thirds of an intermediate's life have passed since it was written.
fn is_old(certificate: &Path) -> bool {
    let written = std::fs::metadata(certificate).and_then(|about| about.modified());
    written.is_ok_and(|written| written + INTERMEDIATE_LIFETIME * 2 / 3 < clock::now())
}

fn by_hand(state: &State, cluster: &ClusterName, domain: &TrustDomain) -> String {
    let at = state.path().display();
    format!(
        "{cluster} has no intermediate certificate, and there is no root key in {at}/root to sign one\n\
         hint: to hang under a fabric's root:\n\
         \x20 1. here:                  hawser trust request {cluster} --trust-domain {domain} --state {at}\n\
         \x20 2. where the root lives:  hawser trust intermediate intermediate.csr   (made by `hawser trust init`)\n\
         \x20 3. here again:            intermediate.crt into {at}/{cluster}/trust-anchor, root.crt into {at}/root\n\
         or, for a fabric of this cluster alone: hawser trust init --state {at}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric;

    fn fabric(directory: &Path) -> Fabric {
        for name in ["west", "east"] {
            let text = format!(
                "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: {name}}}\nspec: {{fabricDomain: acme.example}}\n"
            );
            std::fs::create_dir_all(directory.join(name)).unwrap();
            std::fs::write(directory.join(name).join("cluster.yaml"), text).unwrap();
        }
        fabric::read(directory, None).unwrap()
    }

    #[test]
    fn a_whole_fabric_gets_a_root_and_an_intermediate_a_cluster_and_keeps_them() {
        let directory = tempfile::tempdir().unwrap();
        let fabric = fabric(directory.path());
        let state = State::create(&directory.path().join("s")).unwrap();
        ensure(&state, &fabric, false).unwrap();
        let certificate = state.path().join("west/trust-anchor/intermediate.crt");
        let before = std::fs::read(&certificate).unwrap();
        ensure(&state, &fabric, false).unwrap();
        assert_eq!(std::fs::read(&certificate).unwrap(), before);
        assert!(state.path().join("east/trust-anchor/intermediate.crt").exists());
    }

    #[tokio::test]
    async fn a_cluster_alone_without_a_root_is_told_the_way_and_the_way_works() {
        let directory = tempfile::tempdir().unwrap();
        let mut fabric = fabric(directory.path());
        fabric.retain(|name, _| name.as_str() == "west");
        let here = State::create(&directory.path().join("here")).unwrap();
        let error = ensure(&here, &fabric, true).unwrap_err().to_string();
        assert!(error.contains("hawser trust request west --trust-domain west.acme.example"), "{error}");

        let there = State::create(&directory.path().join("there")).unwrap();
        let arg = |state: &State| StateArg { state: state.path().to_owned() };
        init(&there, "acme", false, None).unwrap();
        let trust_domain: TrustDomain = "west.acme.example".parse().unwrap();
        run(&Trust::Request {
            cluster: "west".parse().unwrap(),
            trust_domain: trust_domain.clone(),
            state: arg(&here),
        })
        .await
        .unwrap();
        let store = here.path().join("west/trust-anchor");
        let request = store.join("intermediate.csr");
        let request = Some(request);
        let trust_domain = Some(trust_domain);
        let sign = Trust::Intermediate { request, cluster: None, trust_domain, next: false, state: arg(&there) };
        run(&sign).await.unwrap();
        hawser_runtime::file::private_directory(&here.root_directory()).unwrap();
        std::fs::copy(there.root_certificate(), here.root_certificate()).unwrap();
        ensure(&here, &fabric, true).unwrap();
    }
}
