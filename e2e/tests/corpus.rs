//! Replays the fuzz targets' corpora on stable, and some thousands of mutations of each: a parser that breaks a promise
//! is found by `cargo test` where a fuzzer found it before, and now and then where none has.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    unreachable_pub,
    reason = "in targets and tests a panic is the report; the targets' file is also the fuzz crate's library"
)]

#[path = "../../fuzz/src/lib.rs"]
mod entries;

use std::fs;
use std::path::{Path, PathBuf};

/// Mutations of each target, shared out over the files of its corpus.
const MUTATIONS: usize = 3000;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz")
}

/// The inputs of a target, in the order of their names so that a run is like the one before.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz().join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty: put valid and hostile inputs there", folder.display());
    files.into_iter().map(|file| (file.display().to_string(), fs::read(&file).unwrap())).collect()
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'/', b':', b'\n'];
        if self.below(2) == 0 { TELLING[self.below(TELLING.len())] } else { u8::try_from(self.below(256)).unwrap() }
    }

    /// A few changes: a byte, a piece less, a piece twice, a piece of another input.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(8)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] = self.byte(),
                1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 => bytes.insert(at, self.byte()),
                3 if at < end => drop(bytes.drain(at..end)),
                4 if at < end => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
                _ => {
                    let from = self.below(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
        }
    }
}

/// Runs a target; where it panics, says with what. Gives back whether the parser took the input.
fn run(target: entries::Target, input: &[u8], from: &str) -> bool {
    std::panic::catch_unwind(|| target(input)).unwrap_or_else(|panic| {
        eprintln!("{from}: {}", input.escape_ascii());
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn every_input_that_was_ever_kept_holds_and_each_corpus_has_some_of_both_kinds() {
    for (name, target) in entries::TARGETS {
        let corpus = corpus(name);
        let taken = corpus.iter().filter(|(file, input)| run(*target, input, file)).count();
        // A corpus that the parser refuses at the door, or takes whole, tests half of it.
        assert!(taken > 0 && taken < corpus.len(), "{name}: {taken} of {} inputs are taken", corpus.len());
    }
}

#[test]
fn mutations_of_the_kept_inputs_hold() {
    for (name, target) in entries::TARGETS {
        let corpus = corpus(name);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..MUTATIONS {
            let (file, input) = &corpus[random.below(corpus.len())];
            let mut input = input.clone();
            let other = random.below(corpus.len());
            random.mutate(&mut input, &corpus[other].1);
            run(*target, &input, &format!("a mutation of {file}"));
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let mut targets: Vec<String> = entries::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    targets.sort();
    for (folder, ending) in [("corpus", ""), ("fuzz_targets", ".rs")] {
        let entries = fs::read_dir(fuzz().join(folder)).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut found: Vec<String> = entries.map(|e| name(e).strip_suffix(ending).unwrap().to_owned()).collect();
        found.sort();
        assert_eq!(found, targets, "fuzz/{folder}");
    }
}
