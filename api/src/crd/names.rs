//! Names in a schema: the pattern and the length that [`crate::names`] holds them to.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::names::{
    ClusterName, LABEL_MAX, Namespace, SPIFFE_ID_MAX, ServiceName, SpiffeId, TRUST_DOMAIN_MAX, TrustDomain,
};

/// One DNS label.
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Letters in either case: they are read in lower case.
const DOMAIN: &str = "^[A-Za-z0-9._-]+$";
/// SPIFFE-ID sections 2.1 and 2.2. That no segment of the path is `.` or `..` is left to whoever reads it.
const ID: &str = "^[Ss][Pp][Ii][Ff][Ff][Ee]://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+$";

macro_rules! text {
    ($name:ident, $pattern:expr, $longest:expr) => {
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "maxLength": $longest })
            }
        }
    };
}

text!(ClusterName, LABEL, LABEL_MAX);
text!(Namespace, LABEL, LABEL_MAX);
text!(ServiceName, LABEL, LABEL_MAX);
text!(TrustDomain, DOMAIN, TRUST_DOMAIN_MAX);
text!(SpiffeId, ID, SPIFFE_ID_MAX);
