//! A whole proxy, run from its configuration.

use std::time::Duration;

use hawser_proxy::Config;
use hawser_runtime::Process;

use crate::setup::in_time;

fn config(dir: &std::path::Path, extra: &str) -> Config {
    let text = format!(
        "process: {{name: west/web, admin: '127.0.0.1:0', runFile: {dir}/run.json}}\n\
         name: web\ncluster: west\n\
         identity: {{trustDomain: west.hawser.test, socket: {dir}/a.sock, joinToken: {dir}/token, store: {dir}/identity}}\n\
         discovery: {{socket: {dir}/d.sock, lastKnown: {dir}/tables}}\n{extra}\n",
        dir = dir.display(),
    );
    std::fs::write(dir.join("proxy.yaml"), text).unwrap();
    hawser_runtime::config::load(&dir.join("proxy.yaml")).unwrap()
}

#[tokio::test]
async fn a_proxy_without_its_control_plane_starts_says_what_it_lacks_and_drains() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::detached();
    let config = config(
        dir.path(),
        "virtualNetwork: 127.70.20.0/24\nsocks: '127.0.0.1:0'\ndns: '127.0.0.1:0'\ninbound: '127.0.0.1:0'",
    );
    let running = tokio::spawn(hawser_proxy::run(config, process.clone()));
    in_time(async {
        while process.unmet() != ["identity", "listening", "tables"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    process.drain.cancel();
    in_time(running).await.unwrap().unwrap();
    process.stop.cancel();
}

#[tokio::test]
async fn an_address_in_use_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = config(dir.path(), &format!("inbound: '{address}'"));
    let error = in_time(hawser_proxy::run(config, Process::detached())).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&address.to_string()) && text.contains("hint:"), "{text}");
}
