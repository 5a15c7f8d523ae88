//! A client and a gateway of our own making, with identities stolen from a running fabric's stores: they speak the
//! protocols well and keep none of the rules.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use hawser_api::bundle::Bundle;
use hawser_api::labels::{CATALOG_SERVICE, HEADER_REFUSAL, HEADER_TARGET, HEADER_VERSION, SYSTEM_NAMESPACE};
use hawser_api::objects::link::Transport;
use hawser_api::{Refusal, TrustDomain};
use hawser_tunnel::listen::{Arrival, ListenConfig, Tunnel, TunnelListener};
use hawser_tunnel::open::{OpenRequest, OpenedAnswer};
use hawser_tunnel::pool::{Dialer, DialerConfig, GatewayPath, Opening};
use hawser_tunnel::sealed::{self, Accepted, SharedClient};
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::tls::{Anchors, Credentials, Expect, Identity};
use http::Request;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Fabric;

const DEADLINE: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "the daemons' clock is in a crate that this one may not use")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn domain(cluster: &str) -> Result<TrustDomain> {
    Ok(format!("{cluster}.hawser.test").parse()?)
}

/// What a process of a cluster keeps in its store: the key and the chain as they are now. Trusts every cluster of the
/// fabric, as all hang under one root.
pub fn steal(fabric: &Fabric, cluster: &str, store: &str) -> Result<Credentials> {
    let store = fabric.state().join(cluster).join(store).join("identity");
    let identity = read_identity(&store).with_context(|| format!("nothing to steal in {}", store.display()))?;
    let bundle = Bundle::parse(&fs::read_to_string(store.join("bundle.json"))?)?;
    let credentials = Credentials::new(domain(cluster)?, now);
    credentials.set_identity(identity);
    let mut problems = credentials.set_anchors(&domain(cluster)?, Anchors::Bundle(bundle));
    for other in ["west", "east", "north"].into_iter().filter(|other| *other != cluster) {
        problems.extend(credentials.set_anchors(&domain(other)?, Anchors::OwnRoot));
    }
    match problems.as_slice() {
        [] => Ok(credentials),
        _ => bail!("the stolen bundle is of no use: {problems:?}"),
    }
}

fn read_identity(store: &Path) -> Result<Identity> {
    let pem = fs::read(store.join("svid.pem"))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&pem)?;
    Ok(Identity::new(chain, key)?)
}

/// A client that names what it likes.
pub struct Client {
    credentials: Credentials,
    dialer: Dialer,
    path: GatewayPath,
}

impl Client {
    /// With a stolen identity, at a gateway of `east`.
    pub fn new(credentials: Credentials, gateway: SocketAddr, transport: Transport) -> Result<Self> {
        let path = GatewayPath {
            cluster: "east".parse()?,
            gateway: "g0".parse()?,
            address: gateway,
            trust_domain: domain("east")?,
            transport,
        };
        Ok(Self { dialer: Dialer::new(credentials.clone(), DialerConfig::default()), credentials, path })
    }

    /// Opens a tunnel.
    pub async fn open(&self, request: &OpenRequest) -> Result<Result<Opening, Refusal>> {
        timeout(DEADLINE, self.dialer.open(&self.path, request)).await.context("the gateway hung")
    }

    /// A tunnel to a service port, behind it this endpoint.
    pub async fn opened(&self, target: &str, endpoint: Option<&str>) -> Result<Opening> {
        let request = OpenRequest { endpoint: endpoint.map(str::to_owned), ..OpenRequest::any(target.parse()?) };
        self.open(&request).await?.map_err(|refusal| anyhow!("{target}: {refusal}"))
    }

    /// A shared session with whoever is there.
    pub async fn shared(&self, stream: TunnelStream) -> Result<Shared> {
        let connect = sealed::connect_shared(stream, &self.credentials, &Expect::Trusted, Duration::from_secs(1));
        let (client, driver) = timeout(DEADLINE, connect).await.context("the session hung")?.map_err(|e| anyhow!(e))?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Shared { client, _driver: task })
    }

    /// A dedicated session that asks for this target.
    pub async fn dedicated(&self, stream: TunnelStream, target: &str) -> Result<Result<(), Refusal>> {
        let target = target.parse()?;
        let connect = sealed::connect_dedicated(stream, &self.credentials, &Expect::Trusted, &target);
        Ok(timeout(DEADLINE, connect).await.context("the session hung")?.map(drop))
    }
}

/// A shared session, in which streams name what they like.
pub struct Shared {
    client: SharedClient,
    _driver: JoinSet<()>,
}

impl Shared {
    /// The server's SPIFFE ID.
    pub fn server(&self) -> String {
        self.client.peer.id().to_string()
    }

    /// A GET, or a CONNECT, to these targets (none, one, or one too many). Its status, and the refusal's code.
    pub async fn ask(&self, method: &str, targets: &[&[u8]]) -> Result<(u16, String)> {
        let uri = if method == "CONNECT" { "checkout.shop:80" } else { "http://checkout.shop/" };
        let mut request = Request::builder().method(method).uri(uri).header(HEADER_VERSION, "1.1");
        for target in targets {
            request = request.header(HEADER_TARGET, *target);
        }
        let mut requests = self.client.requests.clone().ready().await.context("the session ended")?;
        let end = method != "CONNECT";
        let (answer, _body) = requests.send_request(request.body(())?, end)?;
        let answer = timeout(DEADLINE, answer).await.context("the stream hung")?.context("the stream was reset")?;
        let code = answer.headers().get(HEADER_REFUSAL).and_then(|code| code.to_str().ok()).unwrap_or_default();
        Ok((answer.status().as_u16(), code.to_owned()))
    }
}

/// A gateway that answers in the servers' place; it passes the catalog on, so that nobody misses it.
pub struct Rogue {
    stop: CancellationToken,
    fooled: Arc<AtomicU64>,
    tried: Arc<AtomicU64>,
}

/// What a rogue gateway has.
#[derive(Clone)]
struct Loot {
    /// As which it serves sealed sessions.
    server: Credentials,
    /// Where the true catalog is.
    catalog: SocketAddr,
    fooled: Arc<AtomicU64>,
    tried: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Rogue {
    /// Listens with the first identity, answers in servers' place with the second.
    pub async fn start(at: SocketAddr, door: Credentials, server: Credentials, catalog: SocketAddr) -> Result<Self> {
        let listener = TunnelListener::bind(at, door, ListenConfig::default()).await.context("cannot bind")?;
        let stop = CancellationToken::new();
        let rogue = Self { stop: stop.clone(), fooled: Arc::default(), tried: Arc::default() };
        let loot =
            Loot { server, catalog, fooled: rogue.fooled.clone(), tried: rogue.tried.clone(), stop: stop.clone() };
        tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    incoming = listener.accept() => if let Some(incoming) = incoming {
                        let loot = loot.clone();
                        tunnels.spawn(async move {
                            if let Ok(tunnel) = incoming.handshake().await {
                                loot.tunnel(tunnel).await;
                            }
                        });
                    },
                }
            }
            drop(listener);
            // Each cuts its tunnel; a connection that is merely dropped lingers.
            while tunnels.join_next().await.is_some() {}
        });
        Ok(rogue)
    }

    /// Requests that somebody sent into its hands.
    pub fn fooled(&self) -> u64 {
        self.fooled.load(Ordering::Relaxed)
    }

    /// Sessions that it tried to serve.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Loot {
    async fn tunnel(self, mut tunnel: Tunnel) {
        let mut streams = JoinSet::new();
        loop {
            let arrival = tokio::select! {
                () = self.stop.cancelled() => return tunnel.cut(),
                arrival = tunnel.next_open() => arrival,
            };
            let Some(arrival) = arrival else { break };
            let loot = self.clone();
            streams.spawn(async move { loot.stream(arrival).await });
        }
        // Over TCP the streams outlive the tunnel, but not the rogue.
        let ended = async { while streams.join_next().await.is_some() {} };
        self.stop.run_until_cancelled(ended).await;
    }

    async fn stream(self, arrival: Arrival) -> Result<()> {
        let service = arrival.request().target.service.clone();
        let is_system = service.namespace.as_str() == SYSTEM_NAMESPACE;
        let opened = OpenedAnswer { endpoint: "rogue".to_owned(), endpoints_ready: 1 };
        let mut stream = arrival.accept(&opened).await?;
        if is_system && service.name.as_str() == CATALOG_SERVICE {
            let mut catalog = TcpStream::connect(self.catalog).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut catalog).await?;
        } else if !is_system {
            self.tried.fetch_add(1, Ordering::Relaxed);
            self.impersonate(stream).await?;
        }
        Ok(())
    }

    async fn impersonate(&self, stream: TunnelStream) -> Result<()> {
        let accepted = sealed::accept(stream, &self.server, DEADLINE).await?;
        match accepted {
            Accepted::Shared(mut shared) => {
                while let Some(request) = shared.connection.accept().await {
                    let (_request, mut answer) = request?;
                    self.fooled.fetch_add(1, Ordering::Relaxed);
                    let mut body = answer.send_response(http::Response::new(()), false)?;
                    body.send_data(Bytes::from_static(b"{\"instance\":\"rogue\"}"), true)?;
                }
            }
            Accepted::Dedicated { mut session, .. } => {
                session.confirm().await?;
                self.fooled.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
