//! Compiles the protobufs without protoc, so that a machine with nothing but Rust and a C compiler builds Hawser.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["proto/tunnel.proto", "proto/catalog.proto", "proto/discovery.proto", "proto/issuer.proto"];
    for proto in protos {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(protos, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
