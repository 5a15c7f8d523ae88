//! What is large, costly, malformed or of another kind.

use super::*;

#[test]
fn many_anchors_of_one_name_cost_a_bounded_number_of_signatures() {
    let parts = Parts::good();
    let impostor = parts.root.self_signed(&keys().other).unwrap().der().clone();
    let anchors = vec![Anchor::read(&impostor, &domain(EAST)).unwrap(); ANCHORS_MAX];
    let chain = vec![parts.leaf(), parts.intermediate(), parts.intermediate(), parts.intermediate()];
    let error = check(&chain, &anchors, NOW).unwrap_err();
    assert_eq!(error.reason(), "too_large");
}

#[test]
fn what_is_too_large_is_not_parsed() {
    let parts = Parts::good();
    let anchors = [Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    let long = vec![parts.leaf(); CHAIN_MAX + 1];
    assert_eq!(check(&long, &anchors, NOW).unwrap_err().reason(), "too_large");
    let large = CertificateDer::from(vec![0x30; CERTIFICATE_MAX + 1]);
    assert_eq!(check(&[parts.leaf(), large.clone()], &anchors, NOW).unwrap_err().reason(), "too_large");
    assert_eq!(Anchor::read(&large, &domain(EAST)).unwrap_err().reason(), "too_large");
    assert_eq!(check(&[], &anchors, NOW).unwrap_err().reason(), "untrusted");
}

#[test]
fn no_anchors_means_that_nobody_is_trusted() {
    let parts = Parts::good();
    let error = check(&[parts.leaf(), parts.intermediate()], &[], NOW).unwrap_err();
    assert_eq!(error, VerifyError::NoAnchors(domain(EAST)));
}

#[test]
fn bytes_behind_a_certificate_are_refused() {
    let parts = Parts::good();
    let anchors = [Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    let mut leaf = parts.leaf().to_vec();
    leaf.push(0);
    assert!(check(&[leaf.into(), parts.intermediate()], &anchors, NOW).is_err());
    let mut root = parts.root().to_vec();
    root.push(0);
    assert!(Anchor::read(&root, &domain(EAST)).is_err());
}

#[test]
fn authorities_with_other_kinds_of_keys_are_understood() {
    let algorithms: [&rcgen::SignatureAlgorithm; 2] = [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    for algorithm in algorithms {
        let parts = Parts::good();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let root = parts.root.self_signed(&key).unwrap().der().clone();
        let issuer = rcgen::Issuer::from_params(&parts.root, &key);
        let intermediate = parts.intermediate.signed_by(&keys().intermediate, &issuer).unwrap().der().clone();
        let anchors = [Anchor::read(&root, &domain(EAST)).unwrap()];
        check(&[parts.leaf(), intermediate], &anchors, NOW).unwrap();
    }
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let parts = Parts::good();
    let root = parts.root.self_signed(&key).unwrap().der().clone();
    let issuer = rcgen::Issuer::from_params(&parts.root, &key);
    let intermediate = parts.intermediate.signed_by(&keys().intermediate, &issuer).unwrap().der().clone();
    let anchors = [Anchor::read(&root, &domain(EAST)).unwrap()];
    check(&[parts.leaf(), intermediate], &anchors, NOW).unwrap();
}

#[test]
fn no_single_flipped_byte_of_a_chain_is_accepted_as_another_identity() {
    let parts = Parts::good();
    let anchors = [Anchor::read(&parts.root(), &domain(EAST)).unwrap()];
    let (leaf, intermediate) = (parts.leaf(), parts.intermediate());
    for at in 0..leaf.len() {
        let mut broken = leaf.to_vec();
        broken[at] ^= 1;
        if let Ok(svid) = check(&[broken.into(), intermediate.clone()], &anchors, NOW) {
            panic!("byte {at} of the leaf flipped, accepted as {}", svid.id);
        }
    }
    for at in 0..intermediate.len() {
        let mut broken = intermediate.to_vec();
        broken[at] ^= 1;
        let result = check(&[leaf.clone(), broken.into()], &anchors, NOW);
        assert!(result.is_err(), "byte {at} of the intermediate flipped, accepted");
    }
}

#[test]
fn a_name_constraint_is_der_for_every_length_of_trust_domain() {
    for length in [1, 20, 120, 121, 122, 125, 127, 128, 250, 255] {
        let domain = domain(&"d".repeat(length));
        let der = name_constraint(&domain);
        let (rest, read) = NameConstraints::from_der(&der).unwrap();
        assert!(rest.is_empty(), "{length}");
        let permitted = read.permitted_subtrees.unwrap();
        assert_eq!(permitted[0].base, GeneralName::URI(domain.as_str()), "{length}");
        assert_eq!((permitted.len(), read.excluded_subtrees), (1, None), "{length}");
    }
}
