use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use stepwell_core::Name;

use crate::Deployment;

/// What is deployed now. Each change swaps one `Arc`, however many there are, so nobody ever sees half of one; the lock is held
/// for a look-up only.
#[derive(Default)]
pub struct Registry {
    deployments: RwLock<Deployments>,
}

type Deployments = HashMap<(Name, Name), Arc<Deployment>>;

impl Registry {
    /// The current deployment of a pipeline.
    pub fn get(&self, namespace: &Name, pipeline: &Name) -> Option<Arc<Deployment>> {
        let key = (namespace.clone(), pipeline.clone());
        self.read().get(&key).cloned()
    }

    /// Every current deployment.
    pub fn all(&self) -> Vec<Arc<Deployment>> {
        self.read().values().cloned().collect()
    }

    /// Replaces or adds one deployment.
    pub fn put(&self, deployment: Arc<Deployment>) {
        let key = (deployment.namespace.clone(), deployment.name.clone());
        let old = self.write().insert(key, deployment);
        // Dropped after the lock: a deployment may hold much.
        drop(old);
    }

    /// Removes one deployment, if it is there; runs that have started go on.
    pub fn remove(&self, namespace: &Name, pipeline: &Name) -> bool {
        let key = (namespace.clone(), pipeline.clone());
        let old = self.write().remove(&key);
        old.is_some()
    }

    fn read(&self) -> RwLockReadGuard<'_, Deployments> {
        self.deployments
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Deployments> {
        self.deployments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
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
