//! A root whose key is on a token: SoftHSM, by PKCS#11.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's panic is its report")]

use std::path::{Path, PathBuf};
use std::process::Command;

use hawser_runtime::clock;
use hawser_trust_anchor::hierarchy::{self, Token};

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];
const AGAIN: &str = "HAWSER_TEST_TOKEN";

fn module() -> PathBuf {
    let found = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("SoftHSM is missing; to install it: e2e/install-tools"))
}

/// The module reads its environment when it is loaded: the test proper is a process of its own.
#[test]
fn a_root_on_a_token_signs_and_its_key_is_in_no_file() {
    if let Ok(directory) = std::env::var(AGAIN) {
        return on_token(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("tokens")).unwrap();
    let conf = format!("directories.tokendir = {}\nobjectstore.backend = file\n", at("tokens").display());
    std::fs::write(at("softhsm2.conf"), conf).unwrap();
    std::fs::write(at("pin"), "1234\n").unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "fabric", "--pin", "1234", "--so-pin", "5678"])
        .env("SOFTHSM2_CONF", at("softhsm2.conf"))
        .output()
        .unwrap_or_else(|e| panic!("softhsm2-util: {e}; to install it: e2e/install-tools"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_root_on_a_token_signs_and_its_key_is_in_no_file", "--nocapture"])
        .env("SOFTHSM2_CONF", at("softhsm2.conf"))
        .env(AGAIN, directory.path())
        .status()
        .unwrap();
    assert!(again.success());
}

fn on_token(directory: &Path) {
    let at = |name: &str| directory.join(name);
    let token = |label: &str, pin: &str| Token {
        module: module(),
        token: label.into(),
        pin_file: at(pin),
        label: String::new(),
    };
    let now = clock::now();
    std::fs::write(at("wrong"), "0000").unwrap();
    let nobody = hierarchy::init_root_on_token(&at("a"), "test", &token("nobody", "pin"), now).unwrap_err();
    assert!(nobody.to_string().contains("no token has the label"), "{nobody}");
    let wrong = hierarchy::init_root_on_token(&at("b"), "test", &token("fabric", "wrong"), now).unwrap_err();
    assert!(wrong.to_string().contains("does not take the PIN"), "{wrong}");

    hierarchy::init_root_on_token(&at("root"), "test", &token("fabric", "pin"), now).unwrap();
    assert!(hierarchy::has_key(&at("root")) && !at("root/root.key").exists());
    assert!(hierarchy::init_root(&at("root"), "test", now).is_err(), "there is a root already");
    let domain = "east.hawser.test".parse().unwrap();
    // Often enough that numbers of every length occur in the signatures.
    for n in 0..40 {
        let store = at(&format!("store-{n}"));
        let csr = hierarchy::make_csr(&store, &domain).unwrap();
        let signed = hierarchy::sign_intermediate(&at("root"), &csr, Some(&domain), now).unwrap();
        let verified = Command::new("openssl")
            .args(["verify", "-x509_strict", "-CAfile"])
            .arg(at("root/root.crt"))
            .arg(&signed.path)
            .output()
            .unwrap_or_else(|e| panic!("openssl: {e}; to install it: e2e/install-tools"));
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}
