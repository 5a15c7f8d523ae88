//! What every daemon needs once: a process, not a policy.
//!
//! ```text
//! config    a YAML file, read once, unknown fields refused
//! clock     the only place that reads the time
//! log       one line an event, plain or JSON; access records
//! process   signals, shutdown, tasks with an owner, the run file
//! admin     /live /ready /metrics and the daemon's own JSON pages, on a loopback port
//! file      files that a reader never sees half written
//! subscribe the mirror controller's tables as a watch value, with the last known state on disk
//! ```

pub mod admin;
pub mod clock;
pub mod config;
pub mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod last_known;
pub mod log;
pub mod process;
pub mod subscribe;
mod usage;

pub use process::Process;
