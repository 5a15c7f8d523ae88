//! `hawser link` and `hawser unlink`: joins two clusters with one line of text.
//!
//! ```text
//! here: hawser link create --to east ─▶ TOKEN ─ carried by hand ─▶ there: hawser link accept TOKEN
//! ```
//!
//! Both sides then have a Link in `<state>/<cluster>/links`, which their mirror controllers follow. In Kubernetes clusters
//! see `kubernetes`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hawser_api::bundle::Bundle;
use hawser_api::objects::link::LinkGateway;
use hawser_api::proto::issuer::AuditEvent;
use hawser_api::{ClusterName, TrustDomain};
use hawser_runtime::clock;
use hawser_trust_anchor::link::{self, Acceptance, LIFETIME_MAX, LinksConfig, Own, Token, Wanted};
use hawser_tunnel::identity::{Door, audit, own_bundle};
use hawser_tunnel::join::authority;
use serde_json::Value;

use crate::fabric::{self, Declared};
use crate::get::{self, Resource};
use crate::kubernetes::KubeArgs;
use crate::page::text;
use crate::print;
use crate::state::{ClusterState, State, StateArg};

mod kubernetes;
mod status;

/// Join clusters: with a one-time token, or on Kubernetes with a manifest.
#[derive(Debug, Subcommand)]
pub(crate) enum Link {
    /// Print a token with which another cluster can link itself to this one, once, within ten minutes.
    ///
    /// The token is a secret until it is used. It names this cluster's gateways and pins its anchors, so that whoever
    /// accepts it talks to this cluster and to nobody in between.
    ///
    /// With --context or --kubeconfig: print this Kubernetes cluster's side as a Link manifest for the other one. Nothing in
    /// it is secret; the other direction is another manifest.
    Create {
        /// What the other cluster is to be called here.
        #[arg(long, value_name = "NAME")]
        to: ClusterName,
        /// The trust domain that the other cluster must have; by default its name in this cluster's fabric domain.
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: Option<TrustDomain>,
        /// How long the token holds, at most and by default 600.
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
        #[command(flatten)]
        told: Told,
        #[command(flatten)]
        here: Here,
    },
    /// Link this cluster to the one that made the token, and that one to this.
    ///
    /// With --context or --kubeconfig: check a manifest of `hawser link create` and apply it, which links this Kubernetes
    /// cluster to the other one, and not that one to this.
    Accept {
        /// What `hawser link create` printed; of a manifest the file, or - for stdin.
        #[arg(value_name = "TOKEN|FILE")]
        token: String,
        /// What the other cluster is to be called here; by default its own name.
        #[arg(long)]
        name: Option<ClusterName>,
        #[command(flatten)]
        told: Told,
        #[command(flatten)]
        here: Here,
    },
    /// List Links, and tokens that are still open or were used a moment ago.
    List {
        #[command(flatten)]
        here: Here,
    },
    /// Show where Links stand: conditions, gateways, round trip, and what was offered, taken and refused with the reason.
    /// Fails if one of them is not ready.
    Status {
        /// This one only, as this cluster calls it.
        peer: Option<ClusterName>,
        #[command(flatten)]
        here: Here,
    },
    /// Take back the tokens for a peer; a Link that stands goes on: see `hawser unlink`.
    Revoke {
        /// The peer, as `hawser link create --to` named it.
        peer: ClusterName,
        #[command(flatten)]
        here: Here,
    },
}

/// Undo, on this side, what a token made: the Link to a peer, and tokens for it that are still open.
///
/// Streams to and from the peer are cut within seconds and nobody of it is trusted any more. The other side keeps its
/// Link, which leads nowhere, until it is unlinked there too.
#[derive(Debug, clap::Args)]
pub(crate) struct Unlink {
    /// The peer, as this cluster calls it.
    peer: ClusterName,
    #[command(flatten)]
    here: Here,
}

/// Which cluster a command is for.
#[derive(Debug, clap::Args)]
pub(crate) struct Here {
    #[command(flatten)]
    state: StateArg,
    /// The cluster that this is done in; needed where the state directory has several.
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    #[command(flatten)]
    kubernetes: KubeArgs,
}

/// What the other cluster is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Told {
    /// Where this cluster's gateways are for the other one; by default where they listen. May be repeated.
    #[arg(long = "gateway", value_name = "IP:PORT")]
    gateways: Vec<SocketAddr>,
}

/// Runs one of the commands.
pub(crate) async fn run(command: &Link) -> Result<()> {
    if command.here().kubernetes.asked() {
        return run_on_kubernetes(command).await;
    }
    match command {
        Link::Create { to, trust_domain, ttl, told, here } => {
            let (place, trust_domain) = (here.place()?, trust_domain.as_ref());
            let ttl = ttl.map_or(LIFETIME_MAX, Duration::from_secs);
            create(&place, to, trust_domain, ttl, told).await
        }
        Link::Accept { token, name, told, here } => accept(&here.place()?, token, name.clone(), told).await,
        Link::List { here } => list(&here.place()?),
        Link::Status { peer, here } => {
            let state = State::existing(&here.state.state)?;
            let place = here.place()?;
            let rows = get::collect(&state, &place.name, Resource::Links).await?;
            show(&rows, peer.as_ref(), place.name.as_str())
        }
        Link::Revoke { peer, here } => {
            let revoked = link::revoke(&here.place()?.state.trust_anchor(), peer)?;
            print::out(format!("{revoked} {} taken back", if revoked == 1 { "token" } else { "tokens" }));
            Ok(())
        }
    }
}

impl Link {
    fn here(&self) -> &Here {
        match self {
            Self::Create { here, .. }
            | Self::Accept { here, .. }
            | Self::List { here }
            | Self::Status { here, .. }
            | Self::Revoke { here, .. } => here,
        }
    }
}

async fn run_on_kubernetes(command: &Link) -> Result<()> {
    let cluster = command.here().kubernetes.cluster().await?;
    match command {
        Link::Create { trust_domain: Some(_), .. } | Link::Create { ttl: Some(_), .. } => {
            bail!(
                "a manifest ends by itself never and is for no trust domain\nhint: leave --ttl and --trust-domain out"
            )
        }
        Link::Create { to, told, .. } => kubernetes::create(&cluster, to, told).await,
        Link::Accept { told, .. } if !told.gateways.is_empty() => {
            bail!(
                "a manifest says where the other cluster's gateways are, and nothing is sent back\nhint: leave --gateway out"
            )
        }
        Link::Accept { token, name, .. } => kubernetes::accept(&cluster, token, name.as_ref()).await,
        Link::List { .. } => kubernetes::list(&cluster).await,
        Link::Status { peer, .. } => show(&kubernetes::rows(&cluster).await?, peer.as_ref(), &cluster.name),
        Link::Revoke { peer, .. } => {
            bail!("in Kubernetes clusters there are no tokens to take back\nhint: hawser unlink {peer} --context NAME")
        }
    }
}

/// Prints where these Links stand, or the one that is asked for.
fn show(rows: &[Value], peer: Option<&ClusterName>, cluster: &str) -> Result<()> {
    let asked = |row: &&Value| peer.is_none_or(|peer| text(row, "name") == peer.as_str());
    let rows: Vec<&Value> = rows.iter().filter(asked).collect();
    match (rows.is_empty(), peer) {
        (true, Some(peer)) => bail!("{cluster} has no Link named {peer}\nhint: hawser link list"),
        (true, None) => print::note("no links found"),
        (false, _) => {
            print::out(rows.iter().map(|row| status::describe(row)).collect::<Vec<_>>().join("\n").trim_end())
        }
    }
    let bad: Vec<String> = rows.iter().filter(|row| !status::is_ready(row)).map(|row| text(row, "name")).collect();
    if !bad.is_empty() {
        bail!("not ready: {}\nhint: hawser check", bad.join(", "));
    }
    Ok(())
}

/// A cluster of this machine.
struct Place {
    name: ClusterName,
    state: ClusterState,
    /// Its folder of objects.
    objects: PathBuf,
}

impl Here {
    fn place(&self) -> Result<Place> {
        let state = State::existing(&self.state.state)?;
        let name = match (&self.cluster, state.clusters().as_slice()) {
            (Some(name), known) if known.contains(name) => name.clone(),
            (None, [only]) => only.clone(),
            (_, []) => bail!("no cluster has run in {}\nhint: hawser up DIR", state.path().display()),
            (_, known) => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                bail!("say which cluster with --cluster: {}", known.join(", "))
            }
        };
        let cluster = state.cluster(&name)?;
        let path = cluster.config("mirror-controller");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        let objects = config.get("objects").and_then(Value::as_str).context("no `objects` in the configuration")?;
        Ok(Place { name, state: cluster, objects: objects.into() })
    }
}

impl Place {
    fn links(&self) -> LinksConfig {
        LinksConfig { directory: self.state.links(), objects: self.objects.clone() }
    }

    /// What this cluster says of itself to the other.
    async fn own(&self, gateways: &[SocketAddr]) -> Result<(Declared, Own)> {
        let mut fabric = fabric::read(&self.objects, Some(&self.name))?;
        let declared = fabric.remove(&self.name).context("the cluster is gone from its folder")?;
        let socket = self.state.issuer_socket();
        let bundle = own_bundle(&socket)
            .await
            .map_err(|reason| anyhow::anyhow!("{reason}\nhint: {} must be running: hawser up DIR", self.name))?;
        let own = Own {
            cluster: declared.name.clone(),
            trust_domain: declared.trust_domain.clone(),
            bundle,
            gateways: advertised(&declared, gateways)?,
            region: declared.cluster.spec.region.clone(),
        };
        Ok((declared, own))
    }
}

/// The addresses that the other cluster is told.
fn advertised(declared: &Declared, given: &[SocketAddr]) -> Result<Vec<LinkGateway>> {
    let spec = &declared.cluster.spec.gateways;
    let gateways: Vec<LinkGateway> = if given.is_empty() {
        spec.iter().map(|gateway| LinkGateway { name: gateway.name.clone(), address: gateway.listen }).collect()
    } else {
        let named = |(n, address): (usize, &SocketAddr)| -> Result<LinkGateway> {
            Ok(LinkGateway { name: format!("gateway-{n}").parse()?, address: *address })
        };
        given.iter().enumerate().map(named).collect::<Result<_>>()?
    };
    if gateways.is_empty() {
        bail!("{} has no gateway, so nobody can be linked to it\nhint: add one to its Cluster object", declared.name);
    }
    if let Some(open) = gateways.iter().find(|gateway| gateway.address.ip().is_unspecified()) {
        bail!(
            "gateway {} listens on {}, which is no address that another cluster can dial\n\
             hint: --gateway IP:PORT, as it is reached from there",
            open.name,
            open.address
        );
    }
    Ok(gateways)
}

async fn create(
    place: &Place,
    to: &ClusterName,
    domain: Option<&TrustDomain>,
    ttl: Duration,
    told: &Told,
) -> Result<()> {
    let (declared, own) = place.own(&told.gateways).await?;
    if *to == own.cluster {
        bail!("{to} is the name of this cluster itself\nhint: --to names the other one");
    }
    let by_name = || format!("{to}.{}", declared.cluster.spec.fabric_domain).parse::<TrustDomain>();
    let trust_domain = domain.cloned().map_or_else(by_name, Ok)?;
    if trust_domain == own.trust_domain {
        bail!("{trust_domain} is the trust domain of this cluster itself");
    }
    let bundle = Bundle::parse(&own.bundle)?;
    let wanted = Wanted {
        peer: to.clone(),
        trust_domain,
        cluster: own.cluster,
        own_domain: own.trust_domain,
        pins: bundle.x509_authorities.iter().filter_map(|der| authority(der)).collect(),
        gateways: own.gateways,
        region: own.region,
        ttl,
    };
    let token = link::register(&place.state.trust_anchor(), &wanted, clock::now())?;
    print::out(token.to_text());
    let ttl = ttl.min(LIFETIME_MAX).as_secs();
    print::note(format!(
        "a secret until it is used, once, within {ttl} s, by a cluster of {}\nhint: there: hawser link accept TOKEN",
        wanted.trust_domain
    ));
    Ok(())
}

async fn accept(place: &Place, token: &str, name: Option<ClusterName>, told: &Told) -> Result<()> {
    let token = Token::parse(token)?;
    let (_, own) = place.own(&told.gateways).await?;
    let cluster = own.cluster.clone();
    let wanted = Acceptance { token, name, own, links: place.links(), clock: clock::now };
    let accepted = link::accept(wanted)
        .await
        .map_err(|refusal| anyhow::anyhow!("{}\nhint: {}", refusal.message, refusal.remedy))?;
    print::out(format!("{cluster} and {} ({}) are linked", accepted.peer, accepted.trust_domain));
    let root = if accepted.same_root { "both hang under one root" } else { "each has a root of its own" };
    print::note(format!("{root}; this side: {}", accepted.path.display()));
    Ok(())
}

fn list(place: &Place) -> Result<()> {
    let failed = |refusal: hawser_api::Refusal| anyhow::anyhow!("{}\nhint: {}", refusal.message, refusal.remedy);
    let links = place.links();
    let mut rows = Vec::new();
    for file in link::linked(&links.objects).map_err(failed)? {
        let by = file.path.display().to_string();
        rows.push(vec![file.link.metadata.name, file.link.spec.trust_domain.to_string(), "link".into(), by]);
    }
    for file in link::linked(&links.directory).map_err(failed)? {
        rows.push(vec![
            file.link.metadata.name,
            file.link.spec.trust_domain.to_string(),
            "link".into(),
            "token".into(),
        ]);
    }
    let now = clock::millis(clock::now()) / 1000;
    for (_, offer) in link::list(&place.state.trust_anchor())? {
        let left = i64::try_from(offer.expires_at).unwrap_or_default() - now;
        let state = match (&offer.used, left) {
            (Some(_), _) => "token, used".to_owned(),
            (None, left) if left < 0 => "token, expired".to_owned(),
            (None, left) => format!("token, open for {left} s"),
        };
        rows.push(vec![offer.peer.to_string(), offer.trust_domain.to_string(), state, "-".into()]);
    }
    rows.sort();
    print::out(print::table(&["PEER", "TRUST DOMAIN", "WHAT", "BY"], &rows));
    Ok(())
}

/// Runs `hawser unlink`.
pub(crate) async fn unlink(args: &Unlink) -> Result<()> {
    if args.here.kubernetes.asked() {
        return kubernetes::unlink(&args.here.kubernetes.cluster().await?, &args.peer).await;
    }
    let place = args.here.place()?;
    let links = place.links();
    let tokens = link::revoke(&place.state.trust_anchor(), &args.peer)?;
    let removed = link::remove(&links, &args.peer)?;
    let declared = link::linked(&links.objects).unwrap_or_default();
    let declared = declared.iter().find(|file| file.link.metadata.name == args.peer.as_str());
    match (removed, declared) {
        (true, None) => {
            print::out(format!("{} is no longer linked to {}", args.peer, place.name));
            recorded(&place, "unlink", &args.peer, "by `hawser unlink`").await;
        }
        (_, Some(file)) => bail!(
            "{} is linked by {}, which is not ours to change\nhint: take the Link out of that file",
            args.peer,
            file.path.display()
        ),
        (false, None) if tokens > 0 => print::out(format!("{} was not linked; its tokens are taken back", args.peer)),
        (false, None) => bail!("{} has no Link named {}\nhint: hawser link list", place.name, args.peer),
    }
    Ok(())
}

/// Who did it is in the audit log, as the kernel knows him; that it took effect is told by the mirror controller.
async fn recorded(place: &Place, event: &str, peer: &ClusterName, detail: &str) {
    let (event, subject, detail) = (event.to_owned(), peer.to_string(), detail.to_owned());
    let event = AuditEvent { event, subject, detail, reporter: String::new() };
    if let (_, Err(status)) = audit(&Door::Socket(place.state.issuer_socket()), vec![event]).await {
        print::note(format!("not in the audit log: {}", status.message()));
    }
}
