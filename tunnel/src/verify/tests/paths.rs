//! Which ways lead from a leaf to an anchor, and for how long.

use super::*;

#[test]
fn a_chain_holds_from_its_begin_to_its_end_and_no_second_longer() {
    let parts = Parts::good();
    let anchors = [Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    let chain = [parts.leaf(), parts.intermediate()];
    for (now, reason) in [
        (0, Some("not_yet_valid")),
        (NOW - HOUR - 1, Some("not_yet_valid")),
        (NOW - HOUR, None),
        (NOW + HOUR, None),
        (NOW + HOUR + 1, Some("expired")),
        (u64::from(u32::MAX) * 4, Some("expired")),
    ] {
        assert_eq!(check(&chain, &anchors, now).err().map(|e| e.reason()), reason, "at {now}");
    }
}

#[test]
fn the_shortest_life_in_the_path_bounds_what_is_proved() {
    let cases: [fn(&mut Parts); 3] = [
        |p| p.leaf.not_after = at(NOW + 9).into(),
        |p| p.intermediate.not_after = at(NOW + 9).into(),
        |p| p.root.not_after = at(NOW + 9).into(),
    ];
    for shorten in cases {
        let mut parts = Parts::good();
        shorten(&mut parts);
        assert_eq!(parts.verify().unwrap().not_after, at(NOW + 9));
    }
}

#[test]
fn a_chain_may_carry_its_root_and_strangers_and_come_in_any_order_behind_the_leaf() {
    let parts = Parts::good();
    let (leaf, intermediate, root) = (parts.leaf(), parts.intermediate(), parts.root());
    let stranger = named("stranger").self_signed(&keys().other).unwrap().der().clone();
    let anchors = [Anchor::read(&root, &domain(EAST)).unwrap()];
    for rest in [
        vec![intermediate.clone(), root.clone()],
        vec![root.clone(), intermediate.clone()],
        vec![stranger.clone(), intermediate.clone(), root.clone()],
        vec![CertificateDer::from(vec![0u8; 10]), intermediate.clone()],
    ] {
        let mut chain = vec![leaf.clone()];
        chain.extend(rest);
        check(&chain, &anchors, NOW).unwrap();
    }
    // Without the intermediate, or with the leaf not first, there is nothing to prove.
    assert!(check(std::slice::from_ref(&leaf), &anchors, NOW).is_err());
    assert!(check(&[leaf.clone(), root], &anchors, NOW).is_err());
    assert!(check(&[intermediate, leaf], &anchors, NOW).is_err());
}

#[test]
fn the_intermediate_may_be_the_anchor() {
    let parts = Parts::good();
    let anchors = [Anchor::read(&parts.intermediate(), &domain(EAST)).unwrap()];
    check(&[parts.leaf()], &anchors, NOW).unwrap();
    check(&[parts.leaf(), parts.intermediate()], &anchors, NOW).unwrap();
    // But not that of another trust domain, although it is the very same key.
    assert!(Anchor::read(&parts.intermediate(), &domain("west.example")).is_err());
}

#[test]
fn a_root_that_issues_leaves_itself_proves_nothing() {
    let mut parts = Parts::good();
    parts.intermediate = parts.root.clone();
    parts.leaf_signer = &keys().root;
    let anchors = [Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    let error = check(&[parts.leaf()], &anchors, NOW).unwrap_err();
    assert!(error.to_string().contains("without an intermediate"), "{error}");
}

#[test]
fn a_stolen_intermediate_mints_no_identity_of_another_cluster() {
    // West's key signs a leaf of east; west and east hang under one root, and both are linked.
    let mut west = Parts::good();
    west.intermediate.subject_alt_names = vec![uri("spiffe://west.example")];
    west.intermediate.custom_extensions = constrained_to("west.example");
    let anchors = [Anchor::read(&west.root(), &domain(EAST)).unwrap()];
    let error = check(&[west.leaf(), west.intermediate()], &anchors, NOW).unwrap_err();
    assert!(error.to_string().contains("authority of west.example, the leaf is of east.example"), "{error}");

    // West makes itself an authority below its own, for east: the path length forbids it.
    let mut rogue = Parts::good();
    rogue.root = west.intermediate.clone();
    let chain = [rogue.leaf(), rogue.intermediate(), west.intermediate()];
    assert!(check(&chain, &anchors, NOW).is_err());
}

#[test]
fn a_second_anchor_of_the_same_name_is_tried_too() {
    let parts = Parts::good();
    let mut same_name = Parts::good();
    same_name.root.serial_number = Some(7u64.into());
    let impostor = same_name.root.self_signed(&keys().other).unwrap().der().clone();
    let anchors =
        [Anchor::read(&impostor, &domain(EAST)).unwrap(), Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    assert_ne!(anchors[0].fingerprint(), anchors[1].fingerprint());
    let svid = check(&[parts.leaf(), parts.intermediate()], &anchors, NOW).unwrap();
    assert_eq!(svid.anchor, anchors[1].fingerprint());
}
