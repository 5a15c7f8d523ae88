//! What answers requests: the intermediate, the bundle, and whom we trust, each replaced while it serves.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use hawser_api::proto::issuer::{FabricReport, IssueReply, IssueRequest};
use hawser_runtime::{Process, clock};
use hawser_tunnel::tls::Credentials;
use tokio::sync::watch;

use crate::admit::{Admitted, admit};
use crate::config::Config;
use crate::issue::{Lifetimes, Terms, issue};
use crate::record::Record;
use crate::refused::Refused;
use crate::store::{Intermediate, Store};

/// One for the whole process.
pub(crate) struct Authority {
    pub(crate) store: Store,
    /// Our own anchors, by which renewals are verified.
    pub(crate) credentials: Credentials,
    pub(crate) intermediate: ArcSwapOption<Intermediate>,
    /// The bundle as a document; empty before there is one.
    pub(crate) bundle: watch::Sender<String>,
    /// Who has loaded what, as the mirror controller last said.
    pub(crate) fabric: watch::Sender<FabricReport>,
    pub(crate) record: Record,
    lifetimes: Lifetimes,
}

impl Authority {
    pub(crate) fn open(config: &Config, process: &Process) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            store: Store::open(&config.state)?,
            credentials: Credentials::new(config.trust_domain.clone(), clock::now),
            intermediate: ArcSwapOption::empty(),
            bundle: watch::Sender::new(String::new()),
            fabric: watch::Sender::new(FabricReport::default()),
            record: Record::new(process),
            lifetimes: config.lifetimes(),
        }))
    }

    /// Admits, decides and signs. Reads and renames files: not for an async thread.
    pub(crate) fn answer(&self, request: &IssueRequest, now: SystemTime) -> Result<IssueReply, Refused> {
        let intermediate = self.intermediate.load_full();
        let intermediate = intermediate.ok_or_else(|| Refused::NotReady("its intermediate is not signed".into()))?;
        let terms = Terms {
            domain: self.credentials.own_domain().clone(),
            lifetimes: self.lifetimes,
            not_after: intermediate.not_after(),
        };
        // Before admission: a token must not be used up when nothing can be signed.
        if now >= terms.not_after {
            return Err(Refused::IssuerExpired(terms.domain));
        }
        let Admitted { subject, via, request } = admit(request, self.store.directory(), &self.credentials, now)?;
        let template = issue(request, &subject, &terms, now)?;
        let leaf = intermediate.sign(&template).map_err(|e| Refused::Failed(e.to_string()))?;
        self.record.issued(&template, via, &leaf.serial, now);
        let chain = leaf.chain.iter().map(|der| der.to_vec()).collect();
        Ok(IssueReply { chain, bundle: self.bundle.borrow().clone() })
    }
}
