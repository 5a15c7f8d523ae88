//! `hawser demo`: starts a fabric and plays a story on it, each step checked.

mod call;
mod stage;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::AnsiColor;
use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};

use self::stage::Stage;
use crate::print;

/// A step that takes longer has failed, whatever it waits for.
const STEP: Duration = Duration::from_secs(40);

/// Start a fabric, play a story on it, and leave it running to try.
///
/// West calls east over QUIC and TCP; an instance, a gateway and then a whole cluster are killed and calls go on; an
/// export is withdrawn and the caller is told why. Works on a copy of DIR. With DEMO_ONCE=1 it ends with the story: exit
/// status 0 if every step did what it says.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// The fabric: examples/two-clusters, or one with the same services.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// End when the story does.
    #[arg(long, env = "DEMO_ONCE", num_args = 0..=1, default_missing_value = "1", value_name = "1", value_parser = truth)]
    once: Option<bool>,
    /// Play on the `hawser up DIR` that runs on this state directory, instead of starting one.
    #[arg(long, value_name = "STATE")]
    running: Option<PathBuf>,
}

/// `DEMO_ONCE=` and `DEMO_ONCE=0` are no.
fn truth(text: &str) -> Result<bool, String> {
    Ok(!matches!(text, "" | "0" | "false" | "no"))
}

/// Plays.
pub(crate) async fn run(args: &Demo) -> Result<ExitCode> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stage = match &args.running {
        Some(state) => Stage::running(&args.dir, state)?,
        None => Stage::start(&args.dir)?,
    };
    let played = tokio::select! {
        played = play(&stage) => played,
        () = signalled(&mut signals) => {
            stage.end().await;
            // As a shell reports SIGINT: the story was not played to its end.
            return Ok(ExitCode::from(130));
        }
    };
    if let Err(error) = &played {
        let failed = print::coloured(AnsiColor::Red, "the demo stopped at");
        print::note(format!("\n{failed} {error:#}\n{}", stage.last_words()));
    } else if args.once != Some(true) {
        stage.hints().await;
        signalled(&mut signals).await;
    }
    stage.end().await;
    Ok(if played.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(stage: &Stage) -> Result<()> {
    let started = Instant::now();
    print::out(format!("{}: {}\n", print::bold("hawser demo"), stage.title()));
    for (number, step) in story::STEPS.iter().enumerate() {
        let began = Instant::now();
        let saw = match timeout(STEP, (step.play)(stage)).await {
            Ok(saw) => saw,
            Err(_) => Err(anyhow::anyhow!("not done within {} s", STEP.as_secs())),
        };
        let saw = saw.map_err(|error| error.context(format!("step {}, {:?}", number + 1, step.title)));
        let mark = match saw {
            Ok(_) => print::coloured(AnsiColor::Green, '\u{221a}'),
            Err(_) => print::coloured(AnsiColor::Red, '\u{d7}'),
        };
        let took = print::dim(format!("{:.1} s", began.elapsed().as_secs_f64()));
        print::out(format!("{mark} {:>2}. {}  {took}", number + 1, print::bold(step.title)));
        print::out(format!("      {}", saw?));
    }
    let all = story::STEPS.len();
    print::out(format!("\nall {all} steps did what they say, in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

async fn signalled((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
