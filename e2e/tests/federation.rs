//! Trust domains of other makes: a real SPIRE server on the other side, each following the other's bundle endpoint.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hawser_api::bundle::Bundle;
use hawser_api::objects::link::Transport;
use hawser_e2e::intruder::Client;
use hawser_e2e::spire::{DOMAIN, Spire};
use hawser_e2e::{Fabric, Plan, eventually};
use hawser_tunnel::tls::{Anchors, Credentials, Identity};
use serde_json::Value;

const CALLER: &str = "spiffe://spire.test/ns/apps/sa/web";
const EAST: &str = "east.hawser.test";
const EAST_ENDPOINT: &str = "spiffe://east.hawser.test/ns/hawser-system/sa/trust-anchor";

#[expect(clippy::disallowed_methods, reason = "the daemons' clock is in a crate that this one may not use")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

fn at(fabric: &Fabric, host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(fabric.workload("west", host).ip(), port)
}

/// Adds a bundle endpoint to a Cluster that is not running yet.
fn publish(fabric: &Fabric, cluster: &str, endpoint: &str) -> Result<()> {
    let file = fabric.cluster_dir(cluster).join("cluster.yaml");
    let text = std::fs::read_to_string(&file)?;
    fabric.write(cluster, "cluster.yaml", &format!("{text}  bundleEndpoint: {endpoint}\n"))
}

/// A caller with a certificate of SPIRE's, who knows east's anchors by what SPIRE has fetched.
async fn caller(spire: &Spire, identity: Identity, fabric: &Fabric) -> Result<Client> {
    let fetched = spire.run(&["bundle", "list", "-id", &format!("spiffe://{EAST}"), "-format", "spiffe"]).await?;
    let credentials = Credentials::new(DOMAIN.parse()?, now);
    credentials.set_identity(identity);
    let dropped = credentials.set_anchors(&EAST.parse()?, Anchors::Bundle(Bundle::parse(&fetched)?));
    ensure!(dropped.is_empty(), "east's anchors as SPIRE has them: {dropped:?}");
    let gateway = fabric.gateways("east").first().context("no gateway")?.1;
    Client::new(credentials, gateway, Transport::Tcp)
}

/// Through east's gateway to the shop, over a sealed session: the gateway and the proxy both verify the caller.
async fn calls(client: &Client) -> Result<()> {
    let opening = client.opened("shop/checkout:80", None).await?;
    let session = client.shared(opening.stream).await?;
    let (status, code) = session.ask("GET", &[b"shop/checkout:80"]).await?;
    ensure!(status == 200, "status {status} {code}");
    Ok(())
}

/// The Link's bundle as the mirror controller has it in force.
async fn bundle_status(fabric: &Fabric) -> Result<Value> {
    let links = fabric.daemon("east", "mirror-controller", "")?.page("/links").await?;
    let rows = links.as_array().or_else(|| links.get("links")?.as_array()).context("no rows")?;
    let row = rows.iter().find(|row| row.to_string().contains("\"spire\"")).context("spire is not linked")?;
    Ok(row.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spire_server_is_a_peer_like_any_other_and_its_rotation_is_followed() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let ours = at(fabric, 40, 8443);
        publish(fabric, "east", &format!("{{address: \"{ours}\", profile: https_spiffe}}"))?;
        let _shop = fabric.up_with_shop().await?;
        let spire = Spire::start(at(fabric, 41, 8443)).await?;

        // SPIRE begins with a bundle of ours that has an authority too many, and fetches the present one by it.
        let own = std::fs::read_to_string(fabric.state().join("east/proxies/client/identity/bundle.json"))?;
        let present = Bundle::parse(&own)?;
        let mut old = present.clone();
        old.x509_authorities.extend(Bundle::parse(&spire.bundle().await?)?.x509_authorities);
        spire.federate(EAST, ours, EAST_ENDPOINT, &old.to_document()).await?;
        eventually("SPIRE to fetch our bundle", async || {
            spire.run(&["federation", "refresh", "-id", EAST]).await?;
            let listed = ["bundle", "list", "-id", &format!("spiffe://{EAST}"), "-format", "spiffe"];
            let has = Bundle::parse(&spire.run(&listed).await?)?;
            let count = has.x509_authorities.len();
            ensure!(has.x509_authorities == present.x509_authorities, "it has {count} authorities");
            Ok(())
        })
        .await?;

        // East follows SPIRE: who is minted there is let in, and before the Link is not.
        let first = caller(&spire, spire.mint(CALLER).await?, fabric).await?;
        ensure!(calls(&first).await.is_err(), "SPIRE is not linked yet");
        fabric.write("east", "link-spire.yaml", &spire.link(at(fabric, 42, 7443)).await?)?;
        eventually("a caller of SPIRE's to be served", async || calls(&first).await).await?;

        // SPIRE rotates. Its next authority is fetched before it signs, and then signs callers and endpoint alike.
        let before = spire.authority("show", None).await?.to_string();
        let prepared = spire.authority("prepare", None).await?;
        let next = find_id(&prepared).context("no authority was prepared")?;
        eventually("the prepared authority to be fetched", async || {
            let status = bundle_status(fabric).await?;
            ensure!(status.to_string().contains("\"source\":\"https_spiffe\""), "{status}");
            Ok(())
        })
        .await?;
        spire.authority("activate", Some(&next)).await?;
        let second = caller(&spire, spire.mint(CALLER).await?, fabric).await?;
        eventually("a caller under the next authority to be served", async || calls(&second).await).await?;
        calls(&first).await.context("the old authority is still in SPIRE's bundle")?;

        // The old one is revoked there: whoever rests on it is out here.
        let old = find_id(&serde_json::from_str(&before)?).context("no active authority")?;
        spire.authority("taint", Some(&old)).await?;
        spire.authority("revoke", Some(&old)).await?;
        eventually("the revoked authority to prove nobody any more", async || {
            ensure!(calls(&first).await.is_err(), "it still does");
            Ok(())
        })
        .await?;
        calls(&second).await.context("the next authority")
    })
    .await
}

/// The first authority that is named.
fn find_id(said: &Value) -> Option<String> {
    match said {
        Value::Object(fields) => {
            let own = fields.get("authority_id").and_then(Value::as_str).map(str::to_owned);
            own.or_else(|| fields.values().find_map(find_id))
        }
        Value::Array(items) => items.iter().find_map(find_id),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reads_our_bundle_by_a_web_certificate_and_can_do_nothing_else() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let ours = at(fabric, 40, 8443);
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=bundles", "-addext", &format!("subjectAltName=IP:{}", ours.ip())])
            .args(["-keyout", "web.key", "-out", "web.crt"])
            .current_dir(fabric.cluster_dir("east"))
            .output()
            .context("no openssl: run e2e/install-tools")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let files = "certificate: web.crt, key: web.key";
        publish(fabric, "east", &format!("{{address: \"{ours}\", profile: https_web, {files}}}"))?;
        fabric.up().await?;

        let authority = fabric.cluster_dir("east").join("web.crt");
        let curl = |arguments: &[&str]| -> Result<(bool, String)> {
            let mut command = Command::new("curl");
            command.args(["--silent", "--max-time", "10", "--include"]).args(arguments);
            let done = command.arg(format!("https://{ours}/any/path")).output().context("no curl")?;
            Ok((done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned()))
        };
        let trusting = ["--cacert", &authority.to_string_lossy()];
        let (_, said) = curl(&trusting)?;
        let (head, body) = said.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/json"), "{head}");
        let bundle = Bundle::parse(body)?;
        ensure!(bundle.x509_authorities.len() == 1 && bundle.sequence > 0, "{body}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
            let (_, said) = curl(&[&trusting[..], &["--request", method]].concat())?;
            ensure!(said.starts_with("HTTP/1.1 405") && said.contains("allow: GET"), "{method}: {said}");
        }
        // Mozilla's intermediate profile, which SPIFFE Federation demands, begins with TLS 1.2.
        for (version, spoken) in [("1.1", false), ("1.2", true), ("1.3", true)] {
            let versions = ["--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0", "--tls-max", version];
            let (answered, said) = curl(&[&trusting[..], &versions].concat())?;
            ensure!(answered == spoken && said.starts_with("HTTP/1.1 200") == spoken, "TLS {version}: {said}");
        }
        let (trusted, _) = curl(&[])?;
        ensure!(!trusted, "curl does not know the certificate's authority");

        ensure!(go_spiffe(&ours, &["web".as_ref(), authority.as_os_str()])? == bundle, "go-spiffe has another bundle");
        let other = fabric.state().join("root/root.crt");
        let refused = go_spiffe(&ours, &["web".as_ref(), other.as_os_str()]);
        ensure!(refused.is_err(), "go-spiffe took a certificate of nobody's");
        Ok(())
    })
    .await
}

/// East's bundle as go-spiffe fetches it, or why it does not.
fn go_spiffe(endpoint: &SocketAddr, proof: &[&OsStr]) -> Result<Bundle> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/go/client");
    let mut command = Command::new(program);
    command.args(["bundle", EAST]).arg(format!("https://{endpoint}/")).args(proof);
    let done = command.output().context("no go-spiffe client: run e2e/install-tools")?;
    ensure!(done.status.success(), "go-spiffe: {}", String::from_utf8_lossy(&done.stderr));
    Ok(Bundle::parse(std::str::from_utf8(&done.stdout)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_reads_our_bundle_by_an_svid_and_by_no_other() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let ours = at(fabric, 40, 8443);
        publish(fabric, "east", &format!("{{address: \"{ours}\", profile: https_spiffe}}"))?;
        fabric.up().await?;
        let held = fabric.state().join("east/proxies/client/identity/bundle.json");
        let fetched = go_spiffe(&ours, &["spiffe".as_ref(), held.as_os_str(), EAST_ENDPOINT.as_ref()])?;
        ensure!(
            fetched == Bundle::parse(&std::fs::read_to_string(&held)?)?,
            "go-spiffe has another bundle: {fetched:?}"
        );
        for other in ["spiffe://east.hawser.test/ns/hawser-system/sa/gateway", "spiffe://west.hawser.test/x"] {
            let refused = go_spiffe(&ours, &["spiffe".as_ref(), held.as_os_str(), other.as_ref()]);
            ensure!(refused.is_err(), "go-spiffe took the endpoint for {other}");
        }
        Ok(())
    })
    .await
}
