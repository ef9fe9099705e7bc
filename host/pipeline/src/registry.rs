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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Deployed;

    fn deployment(name: &str, revision: u64) -> Arc<Deployment> {
        Arc::new(Deployment {
            namespace: Name::default_namespace(),
            name: name.parse().unwrap(),
            revision,
            triggers: Vec::new(),
            body: Deployed::Steps(Vec::new()),
        })
    }

    #[test]
    fn a_deploy_swaps_one_pipeline_and_leaves_what_has_started() {
        let registry = Registry::default();
        let (namespace, a) = (Name::default_namespace(), "a".parse().unwrap());
        registry.put(deployment("a", 1));
        registry.put(deployment("b", 1));
        let started = registry.get(&namespace, &a).unwrap();
        registry.put(deployment("a", 2));
        assert_eq!(started.revision, 1);
        assert_eq!(registry.get(&namespace, &a).unwrap().revision, 2);
        assert_eq!(registry.all().len(), 2);
        registry.remove(&namespace, &a);
        assert!(registry.get(&namespace, &a).is_none());
        assert_eq!(registry.all().len(), 1);
    }
}
