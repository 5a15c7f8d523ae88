//! A second and a third opinion: thousands of chains, each with one thing changed, and what OpenSSL and pyhanko's
//! certvalidator think of them. Whoever differs from the verifier must be in the table of differences, with the reason.
//!
//! ```text
//! chains (what is changed × variants) ─┬─▶ verify ────────────┐
//!                                      ├─▶ openssl verify ────┼─▶ equal, or explained in `differences`
//!                                      └─▶ certvalidator.py ──┘
//! ```

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is the report")]

mod chains;
mod differences;
mod opinions;

use std::collections::BTreeMap;

use chains::{Change, Scene, Shape, at};
use differences::{DIFFERENCES, Who};
use hawser_tunnel::verify::{Anchor, Svid, VerifyError, verify};
use opinions::Opinion;
use rustls_pki_types::CertificateDer;

/// Variants of each row: other keys, names, and what a chain may have beside.
const VARIANTS: u64 = 11;

/// One chain, and what is thought of it.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    /// Empty if it must be accepted.
    pub(crate) must: &'static str,
    pub(crate) scene: Scene,
    pub(crate) built: chains::Built,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, (shape, (what, must, change))) in chains::rows().enumerate() {
        for variant in 0..VARIANTS {
            let mut scene = Scene::new(shape, index as u64 * 1000 + variant);
            if let Change::Before(change) = change {
                change(&mut scene);
            }
            let mut built = scene.build();
            if let Change::After(change) = change {
                change(&scene, &mut built);
            }
            cases.push(Case { what, must, scene, built });
        }
    }
    cases
}

fn ours(case: &Case) -> Result<Svid, VerifyError> {
    let domain = case.scene.domain.parse().unwrap();
    let read = |der: &CertificateDer<'_>| Anchor::read(der, &domain);
    let dedicated = |anchor: Anchor| match case.scene.shape {
        Shape::Fabric => anchor,
        Shape::Spire | Shape::Istio => anchor.dedicated(std::sync::Arc::default()),
    };
    let (anchors, dropped): (Vec<_>, Vec<_>) = case.built.anchors.iter().map(read).partition(Result::is_ok);
    let anchors: Vec<Anchor> = anchors.into_iter().flatten().map(dedicated).collect();
    // Without an anchor the reason why there is none says more.
    if let (true, Some(Err(why))) = (anchors.is_empty(), dropped.into_iter().next()) {
        return Err(why);
    }
    verify(&case.built.chain, at(case.scene.now), |asked| (*asked == domain).then_some(&anchors))
}

#[test]
fn the_verifier_takes_and_refuses_what_it_must_and_says_why() {
    assert!(chains::rows().count() >= 200, "{} rows", chains::rows().count());
    for case in &cases() {
        match ours(case) {
            Ok(svid) => assert_eq!(case.must, chains::GOOD, "{}: accepted as {}", case.what, svid.id),
            Err(error) => {
                let says = !case.must.is_empty() && error.to_string().contains(case.must);
                assert!(says, "{}: {error} does not say {:?}", case.what, case.must);
            }
        }
    }
}

#[test]
fn the_verifier_agrees_with_openssl_and_certvalidator_or_the_difference_is_explained() {
    let cases = cases();
    assert!(cases.len() >= 2000, "{} chains", cases.len());
    let (openssl, certvalidator) = std::thread::scope(|scope| {
        let openssl = scope.spawn(|| opinions::openssl(&cases));
        let certvalidator = scope.spawn(|| opinions::certvalidator(&cases));
        (openssl.join().unwrap(), certvalidator.join().unwrap())
    });
    let mut unexplained = differing(Who::OpenSsl, &cases, &openssl);
    unexplained.extend(differing(Who::Certvalidator, &cases, &certvalidator));
    assert!(unexplained.is_empty(), "{} differences without a reason:\n{}", unexplained.len(), unexplained.join("\n"));
}

/// Rows on which this one differs from the verifier and no reason is known, and reasons for which there is no difference.
fn differing(who: Who, cases: &[Case], opinions: &[Opinion]) -> Vec<String> {
    let mut by_row: BTreeMap<&str, (usize, usize, String)> = BTreeMap::new();
    for (case, opinion) in cases.iter().zip(opinions) {
        let row = by_row.entry(case.what).or_default();
        row.0 += 1;
        if opinion.accepts != case.must.is_empty() {
            row.1 += 1;
            row.2 = opinion.reason.clone();
        }
    }
    let known = |what: &str| DIFFERENCES.iter().find(|d| d.0.contains(&who) && d.1.contains(&what));
    let mut unexplained = Vec::new();
    for (what, (all, differ, reason)) in &by_row {
        match known(what) {
            None if *differ > 0 => unexplained.push(format!("{who:?} differs: {what} ({differ} of {all}): {reason}")),
            Some(_) if *differ == 0 => unexplained.push(format!("{who:?} does not differ: {what}")),
            _ => {}
        }
    }
    unexplained
}
