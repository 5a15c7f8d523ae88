//! Asks the linker to pack the binary's relative relocations (DT_RELR, generic ABI of ELF): 1.4 MB of tables that every
//! process reads at its start, and that stay resident, become 20 KB. The C library's loader has to know them (glibc 2.36).

use std::process::Command;

/// The first glibc whose loader knows DT_RELR.
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
    let own = std::env::var("HOST") == std::env::var("TARGET");
    if own && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && glibc() >= Some(GLIBC) {
        // A linker that does not know it says so and goes on.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// This machine's, which is what is linked against: the last word of `ldd (…) 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("ldd").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.lines().next()?.split_whitespace().next_back()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
