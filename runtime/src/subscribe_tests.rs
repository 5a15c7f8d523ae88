use std::path::Path;
use std::pin::Pin;

use hawser_api::proto::discovery::discovery_server::{Discovery, DiscoveryServer};
use hawser_api::proto::discovery::{Peer, ReportReply, resource};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Streaming};

use super::*;

fn peer(name: &str, region: &str) -> Resource {
    let peer = Peer { cluster: name.to_owned(), region: region.to_owned(), ..Peer::default() };
    Resource { key: format!("peer/{name}"), changed_at_ms: 1, kind: Some(resource::Kind::Peer(peer)) }
}

fn snapshot(version: u64, changed: Vec<Resource>) -> Update {
    Update { version, snapshot: true, changed, removed: Vec::new() }
}

fn delta(version: u64, changed: Vec<Resource>, removed: &[&str]) -> Update {
    Update { version, snapshot: false, changed, removed: removed.iter().map(|key| (*key).to_owned()).collect() }
}

#[test]
fn a_snapshot_replaces_everything_and_shares_what_did_not_change() {
    let before = merge(None, &Table::default(), snapshot(5, vec![peer("east", "a"), peer("north", "b")])).unwrap();
    let after = merge(None, &before, snapshot(1, vec![peer("east", "a")])).unwrap();
    assert_eq!(after.version, 1);
    assert_eq!(after.resources.keys().collect::<Vec<_>>(), ["peer/east"]);
    assert!(Arc::ptr_eq(&before.resources["peer/east"], &after.resources["peer/east"]));
}

#[test]
fn a_delta_changes_and_removes() {
    let before = merge(None, &Table::default(), snapshot(5, vec![peer("east", "a"), peer("north", "b")])).unwrap();
    let after = merge(Some(&before), &before, delta(6, vec![peer("east", "z")], &["peer/north", "peer/none"])).unwrap();
    assert_eq!(after.resources.len(), 1);
    assert_eq!(*after.resources["peer/east"], peer("east", "z"));
}

#[test]
fn a_delta_that_breaks_a_rule_changes_nothing() {
    let have = merge(None, &Table::default(), snapshot(5, vec![peer("east", "a")])).unwrap();
    let empty = Resource { key: "peer/west".into(), changed_at_ms: 0, kind: None };
    assert_eq!(merge(None, &have, delta(6, vec![], &[])).unwrap_err(), MergeError::NoSnapshot);
    assert_eq!(merge(Some(&have), &have, delta(5, vec![], &[])).unwrap_err(), MergeError::Old { have: 5, got: 5 });
    let mixed = delta(6, vec![peer("north", "b"), empty], &["peer/east"]);
    assert_eq!(merge(Some(&have), &have, mixed).unwrap_err(), MergeError::Empty("peer/west".into()));
}

/// A controller that sends what it is told on each connection, and passes on what it is told of statuses.
struct Controller {
    scripts: parking_lot::Mutex<Vec<Vec<Update>>>,
    statuses: mpsc::UnboundedSender<Status>,
}

#[tonic::async_trait]
impl Discovery for Controller {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, tonic::Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, tonic::Status> {
        assert_eq!(request.get_ref().name, "web");
        let mut scripts = self.scripts.lock();
        let last = scripts.len() == 1;
        let script = scripts.remove(0);
        if last {
            scripts.push(script.clone());
        }
        let (sender, receiver) = mpsc::channel(16);
        for update in script {
            sender.try_send(Ok(update)).unwrap();
        }
        let stream = ReceiverStream::new(receiver);
        // The last script's stream stays open, the others end after their last update.
        let open: Self::WatchStream = match last {
            true => Box::pin(stream.chain(tokio_stream::pending()).map(move |update| {
                let _held = &sender;
                update
            })),
            false => Box::pin(stream),
        };
        Ok(Response::new(open))
    }

    async fn report(&self, request: Request<Streaming<Status>>) -> Result<Response<ReportReply>, tonic::Status> {
        let mut statuses = request.into_inner();
        while let Some(status) = statuses.message().await? {
            let _ = self.statuses.send(status);
        }
        Ok(Response::new(ReportReply {}))
    }
}

fn serve(socket: &Path, scripts: Vec<Vec<Update>>) -> (tokio::task::JoinHandle<()>, mpsc::UnboundedReceiver<Status>) {
    let (statuses, reported) = mpsc::unbounded_channel();
    let controller = Controller { scripts: parking_lot::Mutex::new(scripts), statuses };
    let _ = std::fs::remove_file(socket);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = tonic::transport::Server::builder();
    let serving = server.serve_with_incoming(DiscoveryServer::new(controller), incoming);
    let serving = tokio::spawn(async move { serving.await.unwrap() });
    (serving, reported)
}

fn subscription(directory: &Path) -> Subscription {
    Subscription {
        socket: directory.join("discovery.sock"),
        last_known: directory.join("tables"),
        role: Role::Proxy,
        name: "web".into(),
    }
}

async fn until(tables: &mut watch::Receiver<Arc<Table>>, what: impl Fn(&Table) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), tables.wait_for(|table| what(table))).await;
    waited.expect("the table did not come in time").unwrap();
}

#[tokio::test]
async fn tables_come_are_kept_and_outlive_the_controller() {
    let directory = tempfile::tempdir().unwrap();
    let subscription = subscription(directory.path());
    let scripts = vec![
        vec![snapshot(1, vec![peer("east", "a")]), delta(2, vec![peer("north", "b")], &[])],
        vec![snapshot(1, vec![peer("north", "c")])],
    ];
    let (serving, mut reported) = serve(&subscription.socket, scripts);
    let (tables, mut seen) = watch::channel(Arc::new(Table::default()));
    let status = watch::Sender::new(Status { name: "web".into(), ..Status::default() });
    let running = tokio::spawn(run(subscription.clone(), tables, status.subscribe()));
    // The first connection ends after its delta; the second starts at a lower version and is taken all the same.
    until(&mut seen, |table| table.resources.get("peer/north") == Some(&Arc::new(peer("north", "c")))).await;
    assert_eq!(seen.borrow().resources.len(), 1);
    assert_eq!(reported.recv().await.unwrap().name, "web");
    status.send_modify(|status| status.loaded_version = 1);
    let loaded = async { while reported.recv().await.unwrap().loaded_version != 1 {} };
    tokio::time::timeout(Duration::from_secs(30), loaded).await.unwrap();
    // The write that follows the second snapshot may be a second late.
    let kept = async {
        while last_known::load(&subscription.last_known).is_none_or(|table| table.resources.len() != 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), kept).await.unwrap();
    running.abort();
    serving.abort();

    let (tables, mut seen) = watch::channel(Arc::new(Table::default()));
    let running = tokio::spawn(run(subscription, tables, status.subscribe()));
    until(&mut seen, |table| table.version == 0 && table.resources.contains_key("peer/north")).await;
    running.abort();
}

#[tokio::test]
async fn a_controller_that_breaks_a_rule_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let subscription = subscription(directory.path());
    let scripts = vec![
        vec![delta(7, vec![peer("east", "a")], &[])],
        vec![snapshot(1, vec![peer("east", "a")]), delta(1, vec![], &["peer/east"])],
        vec![snapshot(3, vec![peer("east", "ok")])],
    ];
    let (serving, _reported) = serve(&subscription.socket, scripts);
    let (tables, mut seen) = watch::channel(Arc::new(Table::default()));
    let status = watch::Sender::new(Status::default());
    let running = tokio::spawn(run(subscription, tables, status.subscribe()));
    until(&mut seen, |table| table.version == 3).await;
    running.abort();
    serving.abort();
}
