//! One implementation of cryptography in everything that is built here: what a second one verifies, or is late to mend,
//! nobody here looks at.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

use std::path::Path;
use std::process::Command;

/// Whether the workspace uses this package, with the features that are switched on.
fn used(package: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).args([
        "tree",
        "--workspace",
        "--locked",
        "--offline",
        "--prefix",
        "none",
        "--edges",
        "all",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    tree.lines().any(|line| line.split_whitespace().next() == Some(package))
}

#[test]
fn aws_lc_is_the_only_provider() {
    assert!(used("aws-lc-rs"), "the tree cannot be read");
    // `rustls-platform-verifier` is none of these: the Kubernetes client brings it, for API servers of whom a kubeconfig
    // names no authority, and it verifies by the provider that it is given.
    for other in ["ring", "openssl-sys", "boring-sys", "mbedtls", "wolfssl", "webpki-roots"] {
        assert!(!used(other), "{other} has come in: find out by what with `cargo tree --edges all --invert {other}`");
    }
}
