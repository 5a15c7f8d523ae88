//! `hawser`: run a fabric, look into it, and be each of its daemons.

mod admin;
mod check;
mod columns;
mod daemon;
mod demo;
mod echo;
mod fabric;
mod get;
mod http;
mod install;
mod kubernetes;
mod link;
mod page;
mod print;
mod process;
mod state;
mod trust;
mod up;
mod why;

use clap::{CommandFactory, Parser, Subcommand};

/// How jemalloc is tuned: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Tie clusters together: services exported in one are callable, by name, in every cluster linked to it.
#[derive(Debug, Parser)]
#[command(name = "hawser", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Demo(demo::Demo),
    Get(get::Get),
    Check(check::Check),
    Why(why::Why),
    Process(process::Process),
    Echo(echo::Echo),
    #[command(subcommand)]
    Trust(trust::Trust),
    #[command(subcommand)]
    Link(link::Link),
    Unlink(link::Unlink),
    Install(install::Install),
    #[command(flatten)]
    Daemon(daemon::Daemon),
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Start a program that ends when its parent does. For `hawser up`.
    #[command(hide = true)]
    RunChild(up::child::RunChild),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            print::note(format!("{} {error:#}", print::coloured(anstyle::AnsiColor::Red, "error:")));
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<std::process::ExitCode> {
    match command {
        Command::Up(args) => up::run(&args)?,
        Command::Demo(args) => return asking(demo::run(&args)),
        Command::Get(args) => asking(get::run(&args))?,
        Command::Check(args) => return asking(check::run(&args)),
        Command::Why(args) => asking(why::run(&args))?,
        Command::Process(args) => asking(process::run(&args))?,
        Command::Echo(args) => echo::run(&args)?,
        Command::Trust(command) => asking(trust::run(&command))?,
        Command::Link(command) => asking(link::run(&command))?,
        Command::Unlink(args) => asking(link::unlink(&args))?,
        Command::Install(args) => asking(install::run(&args))?,
        Command::Daemon(daemon) => daemon::run(&daemon)?,
        Command::Version => print::out(concat!("hawser ", env!("CARGO_PKG_VERSION"))),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hawser", &mut std::io::stdout());
        }
        Command::RunChild(args) => up::child::become_child(&args)?,
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// Runs a command that asks others.
fn asking<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// Every `hawser …` that a page has in code.
    fn commands(page: &str) -> Vec<String> {
        let code = page.split('`').skip(1).step_by(2);
        code.filter(|code| code.starts_with("hawser ")).map(str::to_owned).collect()
    }

    #[test]
    fn the_pages_name_only_commands_and_flags_that_exist() {
        let pages = [
            include_str!("../../README.md"),
            include_str!("../../docs/check.md"),
            include_str!("../../docs/coming-from-linkerd.md"),
            include_str!("../../docs/kubernetes.md"),
            include_str!("../../docs/trust.md"),
        ];
        for line in pages.iter().flat_map(|page| commands(page)) {
            let mut command = Cli::command();
            command.build();
            // What it is piped into is not ours.
            for word in line.split_whitespace().skip(1).take_while(|word| *word != "|") {
                if let Some(flag) = word.strip_prefix("--") {
                    let known = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
                    assert!(known, "`{line}`: no flag --{flag}");
                } else if command.has_subcommands() && !word.contains('|') {
                    let sub = command.find_subcommand(word).cloned();
                    command = sub.unwrap_or_else(|| panic!("`{line}`: no command {word}"));
                }
            }
        }
    }
}
