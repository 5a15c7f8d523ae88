//! The only place that writes to the terminal: values to stdout, everything else to stderr, both without panic when
//! nobody reads any more. Colours vanish where the output is no terminal (anstream).

use std::fmt::Display;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// How a command shows what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns.
    Table,
    /// The same with more columns.
    Wide,
    /// JSON, for scripts.
    Json,
    /// YAML, for people and scripts.
    Yaml,
}

/// A line on stdout.
pub(crate) fn out(text: impl Display) {
    let _ = writeln!(anstream::stdout().lock(), "{text}");
}

/// A line on stderr.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Rows under headings, as kubectl prints them; `-` stands for what is missing.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings);
    for row in rows {
        table.add_row(row.iter().map(|cell| if cell.is_empty() { "-" } else { cell.as_str() }));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A value as JSON or YAML.
pub(crate) fn value(value: &impl Serialize, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Yaml => Ok(serde_saphyr::to_string(value)?.trim_end().to_owned()),
        _ => Ok(serde_json::to_string_pretty(value)?),
    }
}

/// Text in a colour.
pub(crate) fn coloured(color: AnsiColor, text: impl Display) -> String {
    let style = Style::new().fg_color(Some(color.into()));
    format!("{style}{text}{style:#}")
}

/// Text in bold.
pub(crate) fn bold(text: impl Display) -> String {
    let style = Style::new().bold();
    format!("{style}{text}{style:#}")
}

/// Text that stands back.
pub(crate) fn dim(text: impl Display) -> String {
    let style = Style::new().dimmed();
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_without_borders_and_shows_what_is_missing() {
        let text =
            table(&["NAME", "STATE"], &[vec!["checkout-east".into(), "ready".into()], vec!["a".into(), String::new()]]);
        assert_eq!(text, " NAME           STATE\n checkout-east  ready\n a              -");
    }
}
