//! SPIFFE's Workload API with clients that nobody here wrote: the Rust library, PyPI's, Node's gRPC, go-spiffe,
//! spiffe-helper and Envoy follow twenty rotations of certificates that live for two seconds, and speak mTLS to one
//! another.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test's panic is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_api::proto::workload::JwtsvidRequest;
use hawser_api::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hawser_e2e::binary::hawser;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use spiffe_rustls::{authorizer, mtls_client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Certificates that each client must have been given, one after the other.
const ROTATIONS: usize = 20;
/// Twenty rotations take twenty seconds; the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const DOMAIN: &str = "west.acme.example";

/// A program that ends with this value, and what it has printed.
struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("cannot start {name}: {e}\nhint: e2e/install-tools"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stdout, into) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        // Ends with the program.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                into.lock().push(line);
            }
        });
        Self { child, lines }
    }

    /// Distinct serial numbers that it has printed.
    fn serials(&self) -> BTreeSet<String> {
        let lines = self.lines.lock();
        let serial = |line: &String| line.strip_prefix("serial ").and_then(|rest| rest.split(' ').next().map(plain));
        lines.iter().filter_map(serial).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A polite end first: `hawser up` has children of its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Programs print serial numbers with and without leading zeros and colons.
fn plain(serial: &str) -> String {
    serial.replace(':', "").to_ascii_lowercase().trim_start_matches('0').to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(missing) = holds() {
        assert!(Instant::now() < deadline, "waited for {what}: {missing}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A standalone cluster without gateways, and a folder for its clients.
struct Site {
    // Ends before its folder does.
    _up: Running,
    dir: tempfile::TempDir,
}

impl Site {
    fn start(identities: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hw").tempdir().unwrap();
        let cluster = "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {name: west}\nspec: {fabricDomain: \
                       acme.example}\n";
        fs::create_dir(dir.path().join("west")).unwrap();
        fs::write(dir.path().join("west/cluster.yaml"), cluster).unwrap();
        fs::write(dir.path().join("west/identities.yaml"), identities).unwrap();
        let ready = dir.path().join("ready");
        let mut command = Command::new(hawser().unwrap());
        command.arg("up").arg(dir.path()).arg("--state").arg(dir.path().join("s")).arg("--ready-file").arg(&ready);
        let up = Running::start(&mut command);
        until("hawser up", || ready.exists().then_some(()).ok_or_else(|| "no ready file".to_owned()));
        Self { _up: up, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("s/west/workload.sock")
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("SPIFFE_ENDPOINT_SOCKET", self.endpoint());
        command
    }
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tool(name: &str) -> PathBuf {
    let path = here().join(".cache").join(name);
    assert!(path.exists(), "{} is missing\nhint: e2e/install-tools", path.display());
    path
}

fn identity(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {{name: {name}}}\nspec:\n  \
         spiffeId: /{name}\n{rest}"
    )
}

fn own_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap())
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The output of a program that must succeed.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}\nhint: e2e/install-tools"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn python(site: &Site, mode: &str) -> Command {
    let mut command = site.command(tool("spiffe/bin/python"));
    command.arg(here().join("spiffe-clients/python/client.py")).arg(mode);
    command
}

fn node(site: &Site) -> Command {
    let mut command = site.command("node");
    let proto = here().join("../api/proto");
    command.env("NODE_PATH", tool("node/node_modules")).arg(here().join("spiffe-clients/node/client.js"));
    // The well-known types come with protobufjs.
    command.arg(proto.join("workload.proto")).arg(&proto);
    command
}

/// Writes the certificate, its key and the bundle into files, as it does for programs that know nothing of SPIFFE.
fn helper(site: &Site) -> Command {
    let folder = site.path("helper");
    fs::create_dir(&folder).unwrap();
    let config = format!(
        "agent_address = \"{}\"\ncert_dir = \"{}\"\nsvid_file_name = \"svid.pem\"\nsvid_key_file_name = \"key.pem\"\n\
         svid_bundle_file_name = \"bundle.pem\"\ndaemon_mode = true\n",
        site.socket().display(),
        folder.display()
    );
    fs::write(site.path("helper.conf"), config).unwrap();
    let mut command = Command::new(tool("go/spiffe-helper"));
    command.arg("-config").arg(site.path("helper.conf")).stderr(Stdio::null());
    command
}

/// An Envoy that answers HTTP over mTLS, with certificate and anchors from our secret discovery.
fn envoy(site: &Site, port: u16, admin: u16) -> Command {
    let sds = |name: &str| {
        serde_json::json!({ "name": name, "sds_config": {
            "resource_api_version": "V3",
            "api_config_source": { "api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "hawser" } }] },
        } })
    };
    let address = |port: u16| serde_json::json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let http = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [{ "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": "hello from envoy" } } }] }] },
    });
    let tls = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3" },
            "tls_certificate_sds_secret_configs": [sds("default")],
            "validation_context_sds_secret_config": sds("ALL"),
        },
    });
    let config = serde_json::json!({
        "admin": { "address": address(admin) },
        "node": { "id": "envoy", "cluster": "test" },
        "static_resources": {
            "listeners": [{ "name": "in", "address": address(port), "filter_chains": [{
                "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": http }],
                "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
            }] }],
            "clusters": [{ "name": "hawser", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    } },
                "load_assignment": { "cluster_name": "hawser", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                    "address": { "pipe": { "path": site.socket() } } } }] }] },
            }],
        },
    });
    fs::write(site.path("envoy.json"), config.to_string()).unwrap();
    let mut command = Command::new(tool("envoy/_bin/envoy"));
    command.arg("-c").arg(site.path("envoy.json")).args(["--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]);
    command
}

/// A GET without TLS, of Envoy's own pages.
fn get(port: u16, path: &str) -> String {
    let url = format!("http://127.0.0.1:{port}{path}");
    let output = Command::new("curl").args(["--silent", "--max-time", "5", &url]).output();
    String::from_utf8_lossy(&output.expect("curl runs\nhint: e2e/install-tools").stdout).into_owned()
}

/// Serial numbers of the certificates that an Envoy has loaded.
fn envoys_serials(admin: u16) -> Vec<String> {
    let page: serde_json::Value = serde_json::from_str(&get(admin, "/certs")).unwrap_or_default();
    let certificates = page.get("certificates").and_then(|all| all.as_array()).cloned().unwrap_or_default();
    let serial =
        |certificate: &serde_json::Value| Some(plain(certificate.pointer("/cert_chain/0/serial_number")?.as_str()?));
    certificates.iter().filter_map(serial).filter(|serial| !serial.is_empty()).collect()
}

fn serial_of_file(path: &Path) -> Option<String> {
    let mut command = Command::new("openssl");
    let output = command.args(["x509", "-noout", "-serial", "-in"]).arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().strip_prefix("serial=").map(plain)
}

async fn rust_source(site: &Site) -> spiffe::X509Source {
    spiffe::X509Source::builder().endpoint(site.endpoint()).build().await.expect("an SVID for the Rust library")
}

/// mTLS with spiffe-rustls as it comes, one HTTP request by hand.
async fn rust_call(source: spiffe::X509Source, port: u16) -> String {
    let config = mtls_client(source).authorize(authorizer::any()).build().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("ignored.example").unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_every_language_follow_twenty_rotations_and_speak_mtls_to_one_another() {
    let rest = format!("  selectors: {{uid: {}}}\n  ttlSeconds: 2\n", own_uid());
    let site = Site::start(&identity("web", &rest));
    let (go_port, envoy_port, admin) = (free_port(), free_port(), free_port());
    let printing = [
        ("PyPI spiffe", Running::start(&mut python(&site, "watch"))),
        ("Node grpc-js", Running::start(&mut node(&site))),
        ("go-spiffe", Running::start(site.command(tool("go/client")).arg("watch"))),
    ];
    let _helper = Running::start(&mut helper(&site));
    let _envoy = Running::start(&mut envoy(&site, envoy_port, admin));
    let listen = format!("127.0.0.1:{go_port}");
    let _server = Running::start(site.command(tool("go/client")).args(["serve", &listen]));
    let source = rust_source(&site).await;

    let mut others = [("Rust spiffe", BTreeSet::new()), ("spiffe-helper", BTreeSet::new()), ("Envoy", BTreeSet::new())];
    until("twenty certificates at every client", || {
        let [(_, rust), (_, helper), (_, envoy)] = &mut others;
        if let Ok(svid) = source.svid() {
            rust.insert(hex(svid.leaf().as_bytes()));
        }
        helper.extend(serial_of_file(&site.path("helper/svid.pem")));
        envoy.extend(envoys_serials(admin));
        let counts = printing.iter().map(|(name, client)| (*name, client.serials().len()));
        let counts: Vec<_> = counts.chain(others.iter().map(|(name, seen)| (*name, seen.len()))).collect();
        if counts.iter().all(|(_, count)| *count > ROTATIONS) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    // All of them were given the very same certificates: an identity has one at a time.
    let given = printing.last().unwrap().1.serials();
    for (name, client) in &printing {
        assert!(client.serials().intersection(&given).count() > ROTATIONS / 2, "{name} was given others");
    }

    // Who calls and who answers are of different makes, after all these rotations.
    let answer = rust_call(source.clone(), go_port).await;
    assert!(answer.contains(&format!("hello spiffe://{DOMAIN}/web")), "{answer}");
    let answer = rust_call(source, envoy_port).await;
    assert!(answer.contains("hello from envoy"), "{answer}");
    let answer = said(site.command(tool("go/client")).args(["call", &format!("127.0.0.1:{envoy_port}")]));
    assert_eq!(answer.trim(), "hello from envoy");

    // JWT-SVIDs: by the Go library's own checks, by Python's, and each by our own.
    let answer = said(site.command(tool("go/client")).arg("jwt"));
    assert!(answer.starts_with(&format!("jwt spiffe://{DOMAIN}/web ")), "{answer}");
    let answer = said(&mut python(&site, "jwt"));
    assert!(answer.starts_with(&format!("jwt spiffe://{DOMAIN}/web ")), "{answer}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks without a pause for three seconds: how often it was served, and how often told to wait.
async fn noise(socket: PathBuf) -> (u32, u32) {
    let mut client = SpiffeWorkloadApiClient::new(channel(socket).await);
    let (mut served, mut refused) = (0, 0);
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let ask = JwtsvidRequest { audience: vec!["db".into()], ..JwtsvidRequest::default() };
        let mut request = tonic::Request::new(ask);
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        let Err(status) = client.fetch_jwtsvid(request).await else {
            served += 1;
            continue;
        };
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        refused += 1;
    }
    (served, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_program_is_held_back_and_another_is_served_at_once() {
    let noisy = std::env::current_exe().unwrap();
    let quiet = fs::canonicalize(tool("go/client")).unwrap();
    let by_path = |path: &Path| format!("  selectors: {{path: {}}}\n", path.display());
    let identities = identity("noisy", &by_path(&noisy)) + &identity("quiet", &by_path(&quiet));
    let site = Site::start(&identities);
    let socket = site.socket();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        calls.spawn(noise(socket.clone()));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let begin = Instant::now();
        let answer = said(site.command(&quiet).arg("jwt"));
        slowest = slowest.max(begin.elapsed());
        assert!(answer.contains(&format!("spiffe://{DOMAIN}/quiet")), "{answer}");
    }
    let all = calls.join_all().await;
    let (served, refused) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(served <= 200 + 50 * 6, "{served} calls of one identity in three seconds");
    assert!(refused > served, "{refused} refused, {served} served: it was not noisy");
    assert!(slowest < Duration::from_secs(2), "the other took {slowest:?}");
}

async fn channel(socket: PathBuf) -> tonic::transport::Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.unwrap()
}
