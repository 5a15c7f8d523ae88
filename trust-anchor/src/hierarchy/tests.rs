use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use hawser_tunnel::tls::{Anchors, Credentials};

use super::*;
use crate::issue::{Lifetimes, Template, Terms, issue};
use crate::signer::Intermediate;
use crate::store::Store;

fn now() -> SystemTime {
    hawser_runtime::clock::now()
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

struct Fabric {
    directory: tempfile::TempDir,
}

impl Fabric {
    fn new() -> Self {
        let fabric = Self { directory: tempfile::tempdir().unwrap() };
        init_root(&fabric.root(), "test", now()).unwrap();
        fabric
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn store(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn signed(&self, name: &str) -> Signed {
        let csr = make_csr(&self.store(name), &domain(name)).unwrap();
        sign_intermediate(&self.root(), &csr, Some(&domain(name)), now()).unwrap()
    }

    /// A leaf of `id` signed by the intermediate of `name`, whether that may or not.
    fn leaf(&self, name: &str, id: &str) -> PathBuf {
        let store = Store::open(&self.store(name)).unwrap();
        let credentials = Credentials::new(domain(name), now);
        let roots = read_certificates(&self.root().join(names::ROOT_CERTIFICATE)).unwrap();
        let bundle = store.bundle(&roots, &[], now()).unwrap();
        assert!(credentials.set_anchors(&domain(name), Anchors::Bundle(bundle)).is_empty());
        let intermediate = Intermediate::load(store.directory(), &credentials).unwrap().unwrap();
        let leaf = intermediate.sign(&template(id)).unwrap();
        let path = self.directory.path().join("leaf.pem");
        write(&path, &pem(&leaf.chain[0])).unwrap();
        path
    }

    fn openssl_verify(&self, name: &str, leaf: &Path) -> String {
        let out = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
            .arg(self.root().join(names::ROOT_CERTIFICATE))
            .arg("-untrusted")
            .arg(self.store(name).join(names::INTERMEDIATE_CERTIFICATE))
            .arg(leaf)
            .output()
            .expect("this test needs openssl: apt-get install openssl");
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn template(id: &str) -> Template {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).unwrap();
    let request = csr::read(csr.der()).unwrap();
    let id: hawser_api::SpiffeId = id.parse().unwrap();
    let hour = Duration::from_secs(3600);
    let terms = Terms {
        domain: id.trust_domain(),
        lifetimes: Lifetimes { workload: hour, gateway: hour },
        not_after: now() + hour,
    };
    issue(request, &id, &terms, now()).unwrap()
}

#[test]
fn openssl_accepts_our_chains_strictly() {
    let fabric = Fabric::new();
    let long = format!("{}.example", "d".repeat(200));
    for name in ["east.example", "west", long.as_str()] {
        fabric.signed(name);
        let leaf = fabric.leaf(name, &format!("spiffe://{name}/ns/shop/sa/web"));
        let said = fabric.openssl_verify(name, &leaf);
        assert!(said.ends_with("leaf.pem: OK\n"), "{name}: {said}");
    }
}

#[test]
fn openssl_too_refuses_what_a_stolen_intermediate_mints_for_another() {
    let fabric = Fabric::new();
    fabric.signed("east.example");
    for id in ["spiffe://west.example/ns/shop/sa/web", "spiffe://sub.east.example/ns/shop/sa/web"] {
        let leaf = fabric.leaf("east.example", id);
        let said = fabric.openssl_verify("east.example", &leaf);
        assert!(said.contains("permitted subtree violation"), "{id}: {said}");
    }
}

#[test]
fn keys_and_directories_are_for_the_owner_alone() {
    let fabric = Fabric::new();
    fabric.signed("east.example");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(fabric.root()), 0o700);
    assert_eq!(mode(fabric.root().join(names::ROOT_KEY)), 0o600);
    assert_eq!(mode(fabric.store("east.example").join(names::INTERMEDIATE_KEY)), 0o600);
}

#[test]
fn a_root_is_not_overwritten() {
    let fabric = Fabric::new();
    let before = fs::read(fabric.root().join(names::ROOT_KEY)).unwrap();
    assert!(matches!(init_root(&fabric.root(), "test", now()), Err(HierarchyError::Exists { .. })));
    assert_eq!(fs::read(fabric.root().join(names::ROOT_KEY)).unwrap(), before);
}

#[test]
fn a_request_is_made_once_and_again_only_when_it_does_not_fit() {
    let fabric = Fabric::new();
    let store = fabric.store("east");
    let csr = make_csr(&store, &domain("east.example")).unwrap();
    let (first, key) = (fs::read(&csr).unwrap(), fs::read(store.join(names::INTERMEDIATE_KEY)).unwrap());
    make_csr(&store, &domain("east.example")).unwrap();
    assert_eq!(fs::read(&csr).unwrap(), first);
    make_csr(&store, &domain("north.example")).unwrap();
    assert_ne!(fs::read(&csr).unwrap(), first);
    assert_eq!(fs::read(store.join(names::INTERMEDIATE_KEY)).unwrap(), key);
}

#[test]
fn an_intermediate_lives_ninety_days_and_never_longer_than_its_root() {
    let fabric = Fabric::new();
    let signed = fabric.signed("east.example");
    let life = signed.not_after.duration_since(now()).unwrap();
    assert!(life <= INTERMEDIATE_LIFETIME && life > INTERMEDIATE_LIFETIME - Duration::from_secs(60));
    let csr = fabric.store("east.example").join(names::INTERMEDIATE_CSR);
    let late = now() + ROOT_LIFETIME - Duration::from_secs(86_400);
    let signed = sign_intermediate(&fabric.root(), &csr, None, late).unwrap();
    assert!(signed.not_after <= now() + ROOT_LIFETIME);
    let (before, after) = (now() - Duration::from_secs(3600), now() + ROOT_LIFETIME);
    for when in [before, after] {
        let refused = sign_intermediate(&fabric.root(), &csr, None, when);
        assert!(matches!(refused, Err(HierarchyError::RootNotValid { .. })), "{refused:?}");
    }
}

#[test]
fn a_request_for_another_cluster_is_refused_where_the_cluster_is_known() {
    let fabric = Fabric::new();
    let csr = make_csr(&fabric.store("west"), &domain("west.example")).unwrap();
    let refused = sign_intermediate(&fabric.root(), &csr, Some(&domain("east.example")), now());
    assert!(matches!(refused, Err(HierarchyError::OtherDomain { .. })), "{refused:?}");
}

#[test]
fn a_request_that_is_none_is_refused_by_name() {
    let fabric = Fabric::new();
    let path = fabric.directory.path().join("bad.csr");
    let key = KeyPair::generate().unwrap();
    let ask = |uris: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    for (content, says) in [
        (String::new(), "no CERTIFICATE REQUEST"),
        (ask(&[]), "exactly one URI"),
        (ask(&["spiffe://a", "spiffe://b"]), "exactly one URI"),
        (ask(&["spiffe://a/path"]), "no trust domain"),
        (ask(&["https://a"]), "no trust domain"),
    ] {
        fs::write(&path, content).unwrap();
        let error = sign_intermediate(&fabric.root(), &path, None, now()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("bad.csr"), "{error} does not say {says}");
    }
}

#[test]
fn a_root_made_by_openssl_signs_too() {
    let fabric = Fabric::new();
    let root = fabric.directory.path().join("foreign");
    fs::create_dir(&root).unwrap();
    let (key, certificate) = (root.join(names::ROOT_KEY), root.join(names::ROOT_CERTIFICATE));
    let out = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"])
        .args(["-subj", "/C=CH/O=Some Company, Inc./CN=Root \u{fc}ber alles", "-utf8"])
        .args(["-addext", "basicConstraints=critical,CA:TRUE,pathlen:1", "-addext", "keyUsage=critical,keyCertSign"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("this test needs openssl: apt-get install openssl");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let csr = make_csr(&fabric.store("east.example"), &domain("east.example")).unwrap();
    sign_intermediate(&root, &csr, None, now()).unwrap();
    let foreign = Fabric { directory: fabric.directory };
    fs::remove_dir_all(foreign.root()).unwrap();
    fs::rename(&root, foreign.root()).unwrap();
    let leaf = foreign.leaf("east.example", "spiffe://east.example/ns/shop/sa/web");
    assert!(foreign.openssl_verify("east.example", &leaf).ends_with("leaf.pem: OK\n"));
}

#[test]
fn the_sequence_grows_with_each_change_and_not_without() {
    let fabric = Fabric::new();
    let second = init_root(&fabric.store("second"), "second", now()).unwrap();
    let read = |path: &Path| read_certificates(path).unwrap();
    let one = read(&fabric.root().join(names::ROOT_CERTIFICATE));
    let both = [one.clone(), read(&second)].concat();
    let directory = fabric.store("east");
    let sequence =
        |roots: &[CertificateDer<'_>]| Store::open(&directory).unwrap().bundle(roots, &[], now()).unwrap().sequence;
    let first = sequence(&one);
    assert_eq!(sequence(&one), first);
    let next = sequence(&both);
    assert!(next > first);
    assert!(sequence(&one) > next);
}

#[test]
fn an_intermediate_that_peers_would_refuse_is_not_taken() {
    let fabric = Fabric::new();
    fabric.signed("east.example");
    let other = Fabric::new();
    let store = Store::open(&fabric.store("east.example")).unwrap();
    let credentials = Credentials::new(domain("east.example"), now);
    let roots = read_certificates(&other.root().join(names::ROOT_CERTIFICATE)).unwrap();
    credentials.set_anchors(&domain("east.example"), Anchors::Bundle(store.bundle(&roots, &[], now()).unwrap()));
    let error = format!("{:#}", Intermediate::load(store.directory(), &credentials).unwrap_err());
    assert!(error.contains("our own verifier refuses"), "{error}");

    // Nor one of another key.
    let csr = make_csr(&fabric.store("west.example"), &domain("east.example")).unwrap();
    let signed = sign_intermediate(&fabric.root(), &csr, None, now()).unwrap();
    fs::copy(signed.path, store.directory().join(names::INTERMEDIATE_CERTIFICATE)).unwrap();
    let error = format!("{:#}", Intermediate::load(store.directory(), &credentials).unwrap_err());
    assert!(error.contains("not of the key"), "{error}");
}
