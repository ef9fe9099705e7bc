//! What a document is checked against.

use metrics::counter;
use stepwell_catalog::{CatalogError, Page};
use stepwell_core::{BindingKind, Name, share_of};
use stepwell_pipeline::{Draft, HostState, KnownPlugin, Subscriptions};

use crate::ahead::Key;
use crate::taken::subscriptions;

use super::{Deployer, Known};

impl Deployer {
    /// What is left of the host's subscriptions; none: the document has no more of them than its pipeline has already.
    async fn room(
        &self,
        own: &Key,
        known: &Known,
        draft: &Draft,
    ) -> Result<Option<Subscriptions>, CatalogError> {
        let wanted = draft.kafka_triggers();
        let before = known.taken.get(own);
        if wanted <= before.map_or(0, |before| subscriptions(before)) {
            return Ok(None);
        }
        let (taken, by_namespace) = known.taken.subscriptions_beside(own);
        let most = self.subscriptions;
        let mut free = most.saturating_sub(taken);
        let share = share_of(most).saturating_sub(by_namespace);
        if wanted > share {
            let two = Page {
                limit: 2,
                cursor: None,
            };
            if self.catalog.namespaces(&two).await?.items.len() > 1 {
                free = free.min(share);
            }
        }
        if wanted > free {
            counter!("stepwell_limit_hits_total", "limit" => "subscriptions").increment(1);
        }
        Ok(Some(Subscriptions { free, most }))
    }

    /// The bindings that a namespace may use: of others it learns nothing.
    fn bindings_of(&self, namespace: &Name) -> Vec<(BindingKind, String)> {
        let all = self.bindings.iter();
        all.filter(|(kind, name)| self.reach.includes(namespace, *kind, name))
            .cloned()
            .collect()
    }

    /// What a document is checked against: the plugins that it names, and the other pipelines that may be in its way.
    pub(super) async fn host_state(
        &self,
        namespace: &Name,
        name: &Name,
        known: &Known,
        draft: &Draft,
    ) -> Result<HostState, CatalogError> {
        let mut plugins = Vec::new();
        for plugin in draft.plugins() {
            match self.catalog.plugin(namespace, &plugin).await {
                Ok(plugin) => plugins.extend(plugin.versions),
                // All of them, for a hint at the one that was meant.
                Err(CatalogError::NotFound(_)) => {
                    plugins = self.catalog.plugin_versions(namespace).await?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        for plugin in &plugins {
            self.factory.learn(plugin.digest, &plugin.world);
        }
        let own = (namespace.clone(), name.clone());
        let subscriptions = self.room(&own, known, draft).await?;
        Ok(HostState {
            plugins: plugins
                .into_iter()
                .map(|plugin| KnownPlugin {
                    name: plugin.name,
                    version: plugin.version,
                    digest: plugin.digest,
                    world: plugin.world,
                    imports: plugin.imports,
                })
                .collect(),
            bindings: self.bindings_of(namespace),
            kafka: self.reach.kafka.clone(),
            jwt: self.jwt.clone(),
            subscriptions,
            pipelines: known.taken.beside(&own, draft.triggers()),
        })
    }
}
