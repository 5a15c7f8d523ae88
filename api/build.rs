//! Compiles the protobufs without protoc, so that a machine with nothing but Rust and a C compiler builds Hawser.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let alone = ["proto/tunnel.proto", "proto/catalog.proto", "proto/discovery.proto"];
    // These speak of the others' messages, which are modules beside them.
    let upon = ["proto/issuer.proto"];
    for proto in alone.iter().chain(&upon) {
        println!("cargo:rerun-if-changed={proto}");
    }
    tonic_prost_build::configure().compile_fds(protox::compile(alone, ["proto"])?)?;
    let beside = PathBuf::from(std::env::var("OUT_DIR")?).join("upon");
    std::fs::create_dir_all(&beside)?;
    tonic_prost_build::configure()
        // Packages that are not made again leave empty files: they must not take the place of the whole ones.
        .out_dir(&beside)
        .extern_path(".hawser.catalog.v1", "crate::proto::catalog")
        .extern_path(".hawser.discovery.v1", "crate::proto::discovery")
        .compile_fds(protox::compile(upon, ["proto"])?)?;
    Ok(())
}
