use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use stepwell_core::Name;

use crate::Deployment;

/// What is deployed now. Readers take a snapshot without waiting; each change swaps whole `Arc`s, so nobody ever sees half of one.
#[derive(Default)]
pub struct Registry {
    deployments: ArcSwap<HashMap<(Name, Name), Arc<Deployment>>>,
}

impl Registry {
    /// The current deployment of a pipeline.
    pub fn get(&self, namespace: &Name, pipeline: &Name) -> Option<Arc<Deployment>> {
        self.deployments
            .load()
            .get(&(namespace.clone(), pipeline.clone()))
            .cloned()
    }

    /// Every current deployment.
    pub fn all(&self) -> Vec<Arc<Deployment>> {
        self.deployments.load().values().cloned().collect()
    }

    /// Replaces or adds one deployment.
    pub fn put(&self, deployment: Arc<Deployment>) {
        let key = (deployment.namespace.clone(), deployment.name.clone());
        self.deployments.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.insert(key.clone(), deployment.clone());
            next
        });
    }

    /// Removes one deployment; runs that have started go on.
    pub fn remove(&self, namespace: &Name, pipeline: &Name) {
        let key = (namespace.clone(), pipeline.clone());
        self.deployments.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.remove(&key);
            next
        });
    }
}
