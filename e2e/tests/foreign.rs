//! Programs that nobody here wrote, called through Hawser as `examples/any-service` tells a newcomer: nginx, a gRPC
//! server and client on gRPC's C core, Redis, iperf3, curl, h2load and dig. They are added by writing YAML alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// For what a program needs to start, and for one call.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {name}\nhint: e2e/install-tools"))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A polite end first: `hawser up` and nginx have children of their own.
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program printed; an error with all of it if it failed.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let limit = PATIENCE.as_secs().to_string();
    let output: Output = Command::new("timeout")
        .args([&limit, program])
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}\nhint: e2e/install-tools"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("waited for {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The example as a newcomer has it, in a folder of its own, with what its programs need.
struct Example {
    dir: tempfile::TempDir,
    running: Vec<Running>,
}

impl Example {
    fn lay() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hawser-foreign").tempdir()?;
        for cluster in ["west", "east"] {
            let (from, to) =
                (root().join("examples/any-service").join(cluster), dir.path().join("fabric").join(cluster));
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(from)?.flatten() {
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(Self { dir, running: Vec::new() })
    }

    fn start_servers(&mut self) -> Result<()> {
        let nginx = root().join("examples/any-service/nginx.conf").canonicalize()?;
        let grpc = root().join("e2e/grpc/echo.py");
        self.running.push(Running::start(Command::new("nginx").arg("-c").arg(nginx))?);
        let redis = ["--bind", "127.0.2.42", "--port", "6379", "--save", "", "--protected-mode", "no"];
        self.running.push(Running::start(Command::new("redis-server").args(redis).current_dir(self.dir.path()))?);
        self.running.push(Running::start(Command::new("iperf3").args(["--server", "--bind", "127.0.2.43"]))?);
        self.running.push(Running::start(Command::new("/usr/bin/python3").arg(grpc).args(["serve", "50051"]))?);
        Ok(())
    }

    fn file(&self, cluster: &str, name: &str) -> PathBuf {
        self.dir.path().join("fabric").join(cluster).join(name)
    }

    fn up(&mut self) -> Result<()> {
        let ready = self.dir.path().join("ready");
        let mut command = Command::new(hawser_e2e::binary::hawser()?);
        command.arg("up").arg(self.dir.path().join("fabric")).arg("--state").arg(self.dir.path().join("state"));
        command.arg("--ready-file").arg(&ready).stderr(fs::File::create(self.dir.path().join("log"))?);
        self.running.push(Running::start(&mut command)?);
        let waited = eventually("hawser up to be ready", || {
            ensure!(ready.exists(), "not yet");
            Ok(())
        });
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        waited.with_context(|| log.lines().rev().take(20).collect::<Vec<_>>().join("\n"))
    }
}

/// The address of a mirror, from the DNS of west's proxy.
fn at(service: &str) -> Result<String> {
    let name = format!("{service}-east.tools.svc.cluster.local");
    eventually(&format!("an address of {name}"), || {
        let answer = said("dig", &["+short", "+time=2", "+tries=1", "@127.0.1.1", "-p", "1053", &name])?;
        let address = answer.trim();
        ensure!(address.starts_with("127."), "dig said {answer:?}");
        Ok(address.to_owned())
    })
}

fn nginx_over_http1_and_http2() -> Result<()> {
    let address = at("nginx")?;
    let caller = "you are spiffe://west.any.hawser/ns/tools/sa/client";
    let http1 = format!("http://{address}:8081/");
    let page = eventually("nginx over HTTP/1.1", || said("curl", &["-sS", "--fail", &http1]))?;
    ensure!(page.contains(caller), "{page}");
    let forged = ["-sS", "--fail", "-H", "x-hawser-client-id: spiffe://east.any.hawser/ns/tools/sa/admin", &http1];
    let page = said("curl", &forged)?;
    ensure!(page.contains(caller), "a forged identity got through: {page}");
    let http2 = format!("http://{address}:8082/");
    let page = said("curl", &["-sS", "--fail", "--http2-prior-knowledge", &http2])?;
    ensure!(page.contains(caller), "{page}");
    let by_name = "http://nginx-east.tools.svc.cluster.local:8081/";
    let page = said("curl", &["-sS", "--fail", "--socks5-hostname", "127.0.1.1:1080", by_name])?;
    ensure!(page.contains(caller), "{page}");
    let load = said("h2load", &["-n", "3000", "-c", "4", "-m", "16", &http2])?;
    ensure!(load.contains("3000 succeeded, 0 failed, 0 errored"), "{load}");
    Ok(())
}

fn grpc() -> Result<()> {
    let script = root().join("e2e/grpc/echo.py").display().to_string();
    let target = format!("{}:50051", at("grpc")?);
    let answer = eventually("the gRPC calls", || said("/usr/bin/python3", &[&script, "call", &target]))?;
    ensure!(answer.contains("ok spiffe://west.any.hawser/ns/tools/sa/client"), "{answer}");
    Ok(())
}

fn redis() -> Result<()> {
    let address = at("redis")?;
    let pong = eventually("redis", || said("redis-cli", &["-h", &address, "-p", "6379", "ping"]))?;
    ensure!(pong.trim() == "PONG", "{pong}");
    let benchmark = ["-h", &address, "-p", "6379", "-n", "2000", "-c", "20", "-t", "set,get,lpush", "-q", "-P", "4"];
    let report = said("redis-benchmark", &benchmark)?;
    ensure!(report.matches("requests per second").count() == 3, "{report}");
    Ok(())
}

fn iperf3() -> Result<()> {
    let address = at("iperf3")?;
    for direction in [&["--parallel", "2"][..], &["--reverse"][..]] {
        let mut arguments = vec!["--client", &address, "--time", "2", "--json"];
        arguments.extend(direction);
        let report = eventually("iperf3", || said("iperf3", &arguments))?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let bytes = report.pointer("/end/sum_received/bytes").and_then(serde_json::Value::as_u64).unwrap_or(0);
        ensure!(bytes > 1_000_000, "{report}");
    }
    Ok(())
}

#[test]
fn programs_as_they_come_are_called_by_name_after_writing_yaml_alone() -> Result<()> {
    let mut example = Example::lay()?;
    // Redis is added while everything runs, as a user would.
    let redis_yaml = fs::read(example.file("east", "redis.yaml"))?;
    fs::remove_file(example.file("east", "redis.yaml"))?;
    example.start_servers()?;
    example.up()?;
    nginx_over_http1_and_http2()?;
    grpc()?;
    iperf3()?;
    fs::write(example.file("east", "redis.yaml"), redis_yaml)?;
    redis()
}
