//! Asking the others: `openssl verify`, a few processes at a time, and one Python process for all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::Case;

/// What somebody thinks of a chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opinion {
    pub(crate) accepts: bool,
    pub(crate) reason: String,
}

/// OpenSSL processes at a time.
const AT_ONCE: usize = 4;

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let one = |der: &CertificateDer<'_>| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    certificates.iter().map(one).collect()
}

/// By the anchors of the trust domain alone; an anchor need not be self-signed. Once as a client, once as a server.
pub(crate) fn openssl(cases: &[Case]) -> Vec<Opinion> {
    let directory = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut opinions = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(index) else { return opinions };
            let folder = directory.path().join(index.to_string());
            fs::create_dir(&folder).unwrap();
            opinions.push((index, asked(case, &folder)));
        }
    };
    let mut opinions = vec![Opinion::default(); cases.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for (index, opinion) in workers.into_iter().flat_map(|worker| worker.join().unwrap()) {
            opinions[index] = opinion;
        }
    });
    opinions
}

fn asked(case: &Case, folder: &Path) -> Opinion {
    let file = |name: &str, certificates: &[CertificateDer<'_>]| {
        let path = folder.join(name);
        fs::write(&path, pem(certificates)).unwrap();
        path.display().to_string()
    };
    let [first, rest @ ..] = &case.built.chain[..] else { return Opinion::default() };
    let leaf = file("leaf", std::slice::from_ref(first));
    for purpose in ["sslclient", "sslserver"] {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-partial_chain", "-purpose", purpose]);
        command.args(["-attime", &case.scene.now.to_string()]);
        // An empty file is no store; without a store the machine's own would be used.
        if case.built.anchors.is_empty() {
            command.args(["-no-CAfile", "-no-CApath", "-no-CAstore"]);
        } else {
            command.args(["-trusted", &file("anchors", &case.built.anchors)]);
        }
        if !rest.is_empty() {
            command.args(["-untrusted", &file("rest", rest)]);
        }
        let output = command.arg(&leaf).output().expect("this test needs openssl: run e2e/install-tools");
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let reason = reason.lines().find(|line| line.starts_with("error ")).unwrap_or(&reason).to_owned();
            return Opinion { accepts: false, reason };
        }
    }
    Opinion { accepts: true, reason: "accepted".into() }
}

/// Where `e2e/install-tools` puts it.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/.cache/certvalidator/bin/python");
    assert!(python.exists(), "this test needs pyhanko-certvalidator: run e2e/install-tools");
    python
}

pub(crate) fn certvalidator(cases: &[Case]) -> Vec<Opinion> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/certvalidator.py");
    let mut command = Command::new(python());
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let encoded = |ders: &[CertificateDer<'_>]| ders.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>();
    let lines = cases.iter().map(|case| {
        let (chain, anchors) = (encoded(&case.built.chain), encoded(&case.built.anchors));
        serde_json::json!({ "chain": chain, "anchors": anchors, "now": case.scene.now }).to_string()
    });
    let lines: Vec<String> = lines.collect();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || lines.iter().for_each(|line| writeln!(input, "{line}").unwrap()));
        child.wait_with_output().unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    let opinions: Vec<Opinion> = text.lines().map(opinion).collect();
    assert_eq!(opinions.len(), cases.len(), "certvalidator.py ended early");
    opinions
}

fn opinion(line: &str) -> Opinion {
    let (verdict, reason) = line.split_once(' ').unwrap_or((line, ""));
    Opinion { accepts: verdict == "accept", reason: reason.to_owned() }
}
