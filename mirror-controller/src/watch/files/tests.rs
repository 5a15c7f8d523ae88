use super::*;
use crate::plan::tests::{WEST, service};

fn own() -> (ClusterName, TrustDomain) {
    ("west".parse().unwrap(), "west.example".parse().unwrap())
}

struct Directory {
    root: tempfile::TempDir,
}

impl Directory {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("objects")).unwrap();
        Self { root }
    }
    fn places(&self) -> Places {
        let at = |name: &str| self.root.path().join(name);
        Places { objects: at("objects"), links: Some(at("links")), last_good: at("last-good") }
    }
    fn reader(&self) -> Reader {
        Reader::new(&self.places(), own())
    }
    fn link(&self, file: &str, text: &str) {
        std::fs::create_dir_all(self.root.path().join("links")).unwrap();
        std::fs::write(self.root.path().join("links").join(file), text).unwrap();
    }
    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.root.path().join("objects").join(file), text).unwrap();
    }
    fn remove(&self, file: &str) {
        std::fs::remove_file(self.root.path().join("objects").join(file)).unwrap();
    }
}

fn services(read: &Option<(Objects, i64)>) -> Vec<String> {
    read.as_ref().unwrap().0.services.keys().map(|key| key.name.to_string()).collect()
}

#[test]
fn a_bad_edit_is_refused_and_what_was_in_force_stays_over_a_restart() {
    let directory = Directory::new();
    directory.write("a.yaml", &service("a", ""));
    directory.write("b.yaml", &service("b", ""));
    let mut reader = directory.reader();
    assert_eq!(services(&reader.read()), ["a", "b"]);
    assert!(reader.read().is_none(), "nothing changed");
    directory.write("b.yaml", &service("c", "").replace("port: 80}", "port: 0}"));
    let read = reader.read();
    assert_eq!(services(&read), ["a", "b"]);
    assert_eq!(read.unwrap().0.problems[0].to_string(), "b.yaml:6: spec.ports[0].port: is 0");
    assert!(reader.read().is_none(), "a problem is told once");
    let restarted = directory.reader().read();
    assert_eq!(services(&restarted), ["a", "b"]);
    assert_eq!(restarted.unwrap().0.problems.len(), 1);
    directory.write("b.yaml", &service("c", ""));
    let read = reader.read();
    assert_eq!(services(&read), ["a", "c"]);
    assert_eq!(read.unwrap().0.problems, []);
}

#[test]
fn a_file_that_is_gone_takes_its_objects_with_it() {
    let directory = Directory::new();
    directory.write("a.yaml", &service("a", ""));
    directory.write("west.yml", WEST);
    directory.write("notes.txt", "not yaml: [");
    directory.write(".hidden.yaml", "not yaml: [");
    let mut reader = directory.reader();
    assert_eq!(reader.read().unwrap().0.links.len(), 2);
    directory.remove("west.yml");
    let (objects, _) = reader.read().unwrap();
    assert_eq!((objects.links.len(), objects.cluster.is_none(), objects.services.len()), (0, true, 1));
    directory.remove("a.yaml");
    assert_eq!(services(&reader.read()), Vec::<String>::new());
}

#[test]
fn a_new_file_cannot_take_what_an_old_one_declares() {
    let directory = Directory::new();
    directory.write("b.yaml", &service("shared", ""));
    let mut reader = directory.reader();
    reader.read().unwrap();
    directory.write("a.yaml", &service("shared", ", labels: {hawser.dev/export: \"true\"}"));
    let (objects, _) = reader.read().unwrap();
    assert_eq!(objects.problems[0].file, "a.yaml");
    assert!(objects.problems[0].reason.contains("already taken by b.yaml:2"), "{:?}", objects.problems);
    assert!(objects.services.values().all(|service| service.metadata.labels.is_empty()));
}

#[test]
fn an_object_may_move_between_files_in_one_step() {
    let directory = Directory::new();
    directory.write("a.yaml", &service("x", ""));
    directory.write("b.yaml", &service("y", ""));
    let mut reader = directory.reader();
    reader.read().unwrap();
    directory.write("a.yaml", &service("z", ""));
    directory.write("b.yaml", &format!("{}{}", service("x", ""), service("y", "")));
    let (objects, _) = reader.read().unwrap();
    assert_eq!(objects.problems, []);
    assert_eq!(objects.services.len(), 3);
}

#[test]
fn a_directory_that_cannot_be_read_changes_nothing() {
    let directory = Directory::new();
    directory.write("a.yaml", &service("a", ""));
    let mut reader = directory.reader();
    reader.read().unwrap();
    std::fs::rename(directory.root.path().join("objects"), directory.root.path().join("away")).unwrap();
    let read = reader.read();
    assert_eq!(services(&read), ["a"]);
    assert!(read.unwrap().0.problems[0].reason.contains("cannot be read"));
    assert_eq!(services(&directory.reader().read()), ["a"], "a restart serves what was good last");
    std::fs::rename(directory.root.path().join("away"), directory.root.path().join("objects")).unwrap();
    assert_eq!(reader.read().unwrap().0.problems, []);
}

#[tokio::test]
async fn an_edit_takes_effect_within_a_second() {
    let directory = Directory::new();
    directory.write("a.yaml", &service("a", ""));
    let store = Store::new(crate::world::World::new("west".parse().unwrap(), "west.example".parse().unwrap()));
    let mut world = store.watch();
    let watching = tokio::spawn(run(directory.places(), store.clone(), |_| {}));
    let has = |count: usize| {
        move |world: &Arc<crate::world::World>| world.objects.as_ref().is_some_and(|o| o.services.len() == count)
    };
    tokio::time::timeout(Duration::from_secs(5), world.wait_for(has(1))).await.unwrap().unwrap();
    directory.write("b.yaml", &service("b", ""));
    tokio::time::timeout(Duration::from_secs(1), world.wait_for(has(2))).await.unwrap().unwrap();
    directory.remove("a.yaml");
    tokio::time::timeout(Duration::from_secs(1), world.wait_for(has(1))).await.unwrap().unwrap();
    watching.abort();
}

#[test]
fn a_link_to_ourselves_is_refused_whatever_the_cluster_object_says() {
    let directory = Directory::new();
    for (from, to, field) in
        [("east.example", "west.example", "spec.trustDomain"), ("{name: east}", "{name: west}", "metadata.name")]
    {
        let link = WEST.split("---\n").nth(1).unwrap().replace(from, to);
        directory.write("link.yaml", &link);
        let (objects, _) = directory.reader().read().unwrap();
        assert!(objects.links.is_empty());
        assert_eq!(objects.problems[0].field, field);
    }
}

fn link(name: &str, domain: &str, region: &str) -> String {
    format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: {domain}\n  \
         region: {region}\n  gateways: [{{name: g0, address: \"127.0.0.9:7443\"}}]\n"
    )
}

fn regions(read: &Option<(Objects, i64)>) -> Vec<String> {
    read.as_ref().unwrap().0.links.values().map(|link| link.spec.region.clone()).collect()
}

#[test]
fn links_made_by_token_are_read_beside_the_users_and_go_when_their_file_goes() {
    let directory = Directory::new();
    let mut reader = directory.reader();
    assert!(regions(&reader.read()).is_empty());
    directory.link("east.yaml", &link("east", "east.example", "token"));
    directory.link(".claim-x", "not YAML");
    assert_eq!(regions(&reader.read()), ["token"]);
    assert!(reader.read().is_none(), "nothing changed");
    directory.link("east.yaml", "kind: [");
    assert_eq!(regions(&reader.read()), ["token"], "a broken file leaves what was in force");
    directory.link("east.yaml", &link("west", "east.example", "token"));
    assert_eq!(regions(&reader.read()), ["token"], "so does a Link to ourselves");
    std::fs::remove_file(directory.root.path().join("links/east.yaml")).unwrap();
    assert!(regions(&reader.read()).is_empty());
    directory.link("svc.yaml", &service("smuggled", ""));
    assert!(services(&reader.read()).is_empty(), "nothing but Links is taken from there");
}

#[test]
fn a_link_that_the_user_declares_goes_before_one_of_the_same_name_or_trust_domain() {
    let directory = Directory::new();
    directory.link("east.yaml", &link("east", "east.example", "token"));
    directory.link("north.yaml", &link("north", "north.example", "token"));
    let mut reader = directory.reader();
    assert_eq!(regions(&reader.read()), ["token", "token"]);
    directory.write("east.yaml", &link("east", "east.example", "user"));
    assert_eq!(regions(&reader.read()), ["user", "token"]);
    directory.write("other.yaml", &link("other", "north.example", "user"));
    assert_eq!(regions(&reader.read()), ["user", "user"]);
    directory.remove("east.yaml");
    assert_eq!(regions(&reader.read()), ["token", "user"]);
}
