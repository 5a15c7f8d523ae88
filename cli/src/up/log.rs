//! What children say, each line behind the name of who said it, coloured by process on a terminal.

use anstyle::AnsiColor;

use super::wanted::Id;
use crate::print;

const COLOURS: [AnsiColor; 10] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightYellow,
    AnsiColor::BrightBlue,
];

/// Shortest column of names: enough for most, so that lines rarely shift.
const NAME_WIDTH: usize = 22;

/// One process's voice.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    prefix: String,
}

impl Log {
    /// The voice of a process; its colour depends on its name alone, so that it is the same in every run.
    pub(crate) fn new(id: &Id) -> Self {
        let sum: usize = id.to_string().bytes().map(usize::from).sum();
        let colour = COLOURS.get(sum % COLOURS.len()).copied().unwrap_or(AnsiColor::White);
        Self { prefix: print::coloured(colour, format!("{id:<NAME_WIDTH$} |")) }
    }

    /// A line of the process itself.
    pub(crate) fn line(&self, line: &str) {
        print::note(format!("{} {line}", self.prefix));
    }

    /// A line about the process.
    pub(crate) fn note(&self, line: &str) {
        print::note(format!("{} {}", self.prefix, print::bold(line)));
    }
}
