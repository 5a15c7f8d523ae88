//! Compiles the protobufs without protoc, so that a machine with nothing but Rust and a C compiler builds Hawser.

use std::path::PathBuf;

/// Files of one pass, and the packages of earlier passes that they speak of, each with its module. A pass writes empty
/// files for those packages: they must not take the place of the whole ones, so each has its own directory.
type Pass = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const CATALOG: (&str, &str) = (".hawser.catalog.v1", "crate::proto::catalog");
const DISCOVERY: (&str, &str) = (".hawser.discovery.v1", "crate::proto::discovery");
const ISSUER: (&str, &str) = (".hawser.issuer.v1", "crate::proto::issuer");

const PASSES: &[Pass] = &[
    ("", &["proto/tunnel.proto", "proto/catalog.proto", "proto/discovery.proto"], &[]),
    ("upon", &["proto/issuer.proto"], &[CATALOG, DISCOVERY]),
    ("above", &["proto/trust.proto"], &[CATALOG, DISCOVERY, ISSUER]),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (directory, protos, others) in PASSES {
        for proto in *protos {
            println!("cargo:rerun-if-changed={proto}");
        }
        let directory = out.join(directory);
        std::fs::create_dir_all(&directory)?;
        // Maps in order, so that equal messages are equal bytes.
        let mut builder = tonic_prost_build::configure().out_dir(&directory).btree_map(".");
        for (package, module) in *others {
            builder = builder.extern_path(*package, *module);
        }
        builder.compile_fds(protox::compile(*protos, ["proto"])?)?;
    }
    // Standards of others.
    let foreign = ["proto/workload.proto", "proto/sds.proto"];
    for proto in foreign {
        println!("cargo:rerun-if-changed={proto}");
    }
    tonic_prost_build::configure().btree_map(".").compile_fds(protox::compile(foreign, ["proto"])?)?;
    Ok(())
}
