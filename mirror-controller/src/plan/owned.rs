//! Everything that should exist because of a plan, as one list: apply makes it so, and removes what is not in it.

use std::fmt;

use hawser_api::objects::import::{ServiceImport, ServiceImportStatus};
use hawser_api::objects::{EndpointSlice, Metadata, Service};
use hawser_api::{Namespace, ServiceKey};
use serde::{Serialize, Serializer};

use super::Plan;

/// Kinds of objects that are made, in the order in which those of one service are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `multicluster.x-k8s.io/v1beta1`
    ServiceImport,
}

impl Kind {
    /// As objects say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceImport => "ServiceImport",
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// The name of the Service that it is, or belongs to. What belongs to one service is sorted together.
    pub service: String,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// One object that should exist.
#[derive(Debug, Clone, PartialEq)]
pub enum Owned<'p> {
    /// A Service.
    Service(&'p Service),
    /// An EndpointSlice.
    EndpointSlice(&'p EndpointSlice),
    /// A ServiceImport, with where it stands.
    ServiceImport(&'p ServiceImport, &'p ServiceImportStatus),
}

/// The object as it is applied: where it stands is written by itself.
impl Serialize for Owned<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Service(service) => service.serialize(to),
            Self::EndpointSlice(slice) => slice.serialize(to),
            Self::ServiceImport(import, _) => import.serialize(to),
        }
    }
}

impl Owned<'_> {
    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::ServiceImport(import, _) => &import.metadata,
        }
    }
}

/// All of it, in order: what belongs to one service together, the Service first.
pub fn owned(plan: &Plan) -> Vec<(ObjectKey, Owned<'_>)> {
    let mut owned = Vec::new();
    let of = |key: &ServiceKey, kind: Kind, name: &str| ObjectKey {
        namespace: key.namespace.clone(),
        service: key.name.to_string(),
        kind,
        name: name.to_owned(),
    };
    for (key, object) in &plan.mirrors {
        let of = |kind: Kind, name: &str| of(key, kind, name);
        owned.push((of(Kind::Service, key.name.as_str()), Owned::Service(&object.service)));
        for slice in &object.slices {
            owned.push((of(Kind::EndpointSlice, &slice.metadata.name), Owned::EndpointSlice(slice)));
        }
    }
    for (key, object) in &plan.imports {
        let of = |kind: Kind, name: &str| of(key, kind, name);
        for service in &object.derived {
            owned.push((of(Kind::Service, &service.metadata.name), Owned::Service(service)));
        }
        for slice in &object.slices {
            owned.push((of(Kind::EndpointSlice, &slice.metadata.name), Owned::EndpointSlice(slice)));
        }
        let import = Owned::ServiceImport(&object.import, &object.status);
        owned.push((of(Kind::ServiceImport, key.name.as_str()), import));
    }
    owned.sort_by(|(a, _), (b, _)| a.cmp(b));
    owned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use crate::plan::tests::{WEST, offer, offered, world};

    #[test]
    fn every_object_is_listed_once_a_service_before_its_slices() {
        let mut world = world(WEST);
        offer(&mut world, "east", vec![offered("east", "a", 1, false), offered("east", "b", 1, false)]);
        let plan = plan(&world).unwrap();
        let listed: Vec<String> = owned(&plan).iter().map(|(key, _)| key.to_string()).collect();
        let expected = [
            "EndpointSlice shop/a.east-7443",
            "EndpointSlice shop/a.east-7444",
            "ServiceImport shop/a",
            "Service shop/a-east",
            "EndpointSlice shop/a-east-7443",
            "EndpointSlice shop/a-east-7444",
            "EndpointSlice shop/b.east-7443",
            "EndpointSlice shop/b.east-7444",
            "ServiceImport shop/b",
            "Service shop/b-east",
            "EndpointSlice shop/b-east-7443",
            "EndpointSlice shop/b-east-7444",
        ];
        assert_eq!(listed, expected);
    }
}
