use hawser_api::proto::issuer::LinkedPeer;
use hawser_runtime::clock;
use hawser_tunnel::testing::Pki;

use super::*;

fn peer(cluster: &str, domain: &str, bundle: &str) -> LinkedPeer {
    LinkedPeer { cluster: cluster.into(), trust_domain: domain.into(), bundle: bundle.into(), ..LinkedPeer::default() }
}

fn entry(links: &[&str]) -> Entry {
    let text = format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {{name: web}}\nspec:\n  spiffeId: /web\n  \
         selectors: {{uid: 1}}\n  federatesWith: [{}]\n",
        links.join(", ")
    );
    let objects = hawser_api::objects::load::parse("a.yaml", &text).unwrap();
    let (entries, _) = super::super::entries::Entries::of(&objects, &"west.test".parse().unwrap());
    let caller = super::super::attest::Attested { uid: 1, ..Default::default() };
    entries.given(&caller).remove(0)
}

#[test]
fn a_workload_is_given_the_bundles_of_the_links_that_it_names_and_of_no_others() {
    let now = clock::now();
    let own: TrustDomain = "west.test".parse().unwrap();
    let (ours, theirs) = (Pki::new().bundle(), Pki::new().bundle());
    let good = theirs.to_document();
    // One anchor that is none beside one that is.
    let mut mixed = theirs.clone();
    mixed.x509_authorities.insert(0, vec![0x30, 0]);
    let rotten = Bundle { x509_authorities: vec![vec![0x30, 0]], ..Bundle::default() };
    let peers = vec![
        peer("east", "east.test", &good),
        peer("north", "north.test", &mixed.to_document()),
        peer("south", "south.test", &rotten.to_document()),
        peer("torn", "torn.test", "{"),
        peer("us", "west.test", &good),
        peer("shared", "shared.test", ""),
    ];
    let fabric = FabricReport { peers, ..FabricReport::default() };
    let (trusted, left_out) = Trusted::of(&own, &ours.to_document(), &fabric, now);
    assert_eq!(left_out.keys().collect::<Vec<_>>(), ["south", "torn", "us"]);
    assert!(left_out["us"].contains("own trust domain"));
    let given = |links: &[&str]| {
        let entries = [entry(links)];
        let found = trusted.federated(&entries).map(|(d, b)| (d.to_string(), b.x509_authorities.clone()));
        found.collect::<Vec<_>>()
    };
    assert_eq!(given(&[]), []);
    assert_eq!(given(&["south", "torn", "us", "unknown"]), [], "what cannot be used is not sent");
    assert_eq!(
        given(&["east", "north", "shared"]),
        [
            ("east.test".to_owned(), theirs.x509_authorities.clone()),
            ("north.test".to_owned(), theirs.x509_authorities.clone()),
            ("shared.test".to_owned(), ours.x509_authorities.clone()),
        ]
    );
}
