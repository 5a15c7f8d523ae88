//! One function for each byte parser that a stranger, a peer or a user's file can reach: it takes any bytes, and panics
//! where the parser breaks a promise. `fuzz_targets/` hands these functions to libFuzzer, and `e2e/tests/corpus.rs`
//! (which includes this file) replays `corpus/` through them on stable, with some thousands of mutations.

pub mod control;
pub mod proxy;
pub mod wire;
pub mod words;

/// A target's body: says whether the parser took the input, so that a corpus that reaches nothing is noticed.
pub type Target = fn(&[u8]) -> bool;

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", wire::frame),
    ("open", wire::open),
    ("answer", wire::answer),
    ("preface", wire::preface),
    ("record", wire::record),
    ("chain", wire::chain),
    ("bundle", words::bundle),
    ("names", words::names),
    ("refusal", words::refusal),
    ("objects", words::objects),
    ("detect", proxy::detect),
    ("dns", proxy::dns),
    ("socks", proxy::socks),
    ("grpc", control::grpc),
    ("catalog", control::catalog),
    ("last_known", control::last_known),
];

/// The result of a future that reads from memory and so never waits.
fn ready<F: Future>(future: F) -> F::Output {
    futures_util::FutureExt::now_or_never(future).expect("bytes in memory are always there")
}
