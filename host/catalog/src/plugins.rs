use bytes::Bytes;
use semver::Version;
use stepwell_core::{Digest, Name};

use crate::audit::Act;
use crate::db::{Row, Tx, Value, now, signed};
use crate::namespaces;
use crate::{
    Catalog, CatalogError, NewPluginVersion, Page, Paged, Plugin, PluginVersion, PutVersion,
};

macro_rules! select_versions {
    ($rest:literal) => {
        concat!(
            "SELECT namespace, name, version, digest, world, imports, exports, size, compile_ms, created_at \
             FROM plugin_versions ",
            $rest
        )
    };
}

impl Catalog {
    /// Stores a plugin version with its bytes, in one transaction. Of several at once, one is created.
    ///
    /// # Errors
    /// [`CatalogError::QuotaExceeded`] and [`CatalogError::NotFound`] of the namespace among them; a version that exists with
    /// other bytes is no error but [`PutVersion::Conflict`].
    pub async fn put_plugin_version(
        &self,
        new: NewPluginVersion,
    ) -> Result<PutVersion, CatalogError> {
        let (digest, bytes) = hash(new.bytes).await?;
        let mut tx = self.db.write().await?;
        let existing = version(&mut tx, &new.namespace, &new.name, &new.version).await?;
        if let Some(existing) = existing {
            if existing.digest != digest {
                return Ok(PutVersion::Conflict(existing));
            }
            if put_blob(&mut tx, digest, &bytes).await? {
                tracing::warn!(%digest, "a corrupt component was mended by a new upload");
                tx.commit().await?;
            }
            return Ok(PutVersion::Same(existing));
        }
        namespaces::admit(&mut tx, &new.namespace, bytes.len() as u64).await?;
        put_blob(&mut tx, digest, &bytes).await?;
        tx.execute(
            "INSERT INTO plugin_versions \
             (namespace, name, version, digest, world, imports, exports, size, compile_ms, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            &[
                Value::Text(new.namespace.as_str()),
                Value::Text(new.name.as_str()),
                Value::Text(&new.version.to_string()),
                Value::Text(&digest.to_string()),
                Value::Text(&new.world),
                Value::Text(&serde_json::Value::from(new.imports).to_string()),
                Value::Text(&serde_json::Value::from(new.exports).to_string()),
                Value::Int(signed(bytes.len() as u64)),
                Value::Int(signed(new.compile_ms)),
                Value::Int(now()),
            ],
        )
        .await?;
        let created = version(&mut tx, &new.namespace, &new.name, &new.version)
            .await?
            .ok_or_else(|| CatalogError::Corrupt("a row that was inserted is gone".to_owned()))?;
        let what = format!("plugin {}@{}", new.name, new.version);
        tx.record(
            &self.by,
            Act::new("plugin.put", Some(&new.namespace), what).of(digest),
        )
        .await?;
        tx.commit().await?;
        Ok(PutVersion::Created(created))
    }

    /// Whether a namespace has room for one more plugin version of this size, as it is now: asked before work is put into it.
    ///
    /// # Errors
    /// [`CatalogError::QuotaExceeded`] and [`CatalogError::NotFound`] of the namespace among them.
    pub async fn admits_plugin_version(
        &self,
        namespace: &Name,
        size: u64,
    ) -> Result<(), CatalogError> {
        namespaces::admit(&mut self.db.read().await?, namespace, size).await
    }

    /// One version of a plugin.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version_: &Version,
    ) -> Result<PluginVersion, CatalogError> {
        let mut tx = self.db.read().await?;
        version(&mut tx, namespace, name, version_)
            .await?
            .ok_or_else(|| no_version(name, version_))
    }

    /// A plugin with all of its versions.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn plugin(&self, namespace: &Name, name: &Name) -> Result<Plugin, CatalogError> {
        let mut tx = self.db.read().await?;
        plugin(&mut tx, namespace, name.clone())
            .await?
            .ok_or_else(|| CatalogError::NotFound(format!("plugin {name}")))
    }

    /// The plugins of a namespace, in the order of their names.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn plugins(
        &self,
        namespace: &Name,
        page: &Page,
    ) -> Result<Paged<Plugin>, CatalogError> {
        let limit = page.limit();
        let mut tx = self.db.read().await?;
        let names = tx
            .rows(
                "SELECT DISTINCT name FROM plugin_versions WHERE namespace = $1 AND name > $2 \
                 ORDER BY name LIMIT $3",
                &[
                    Value::Text(namespace.as_str()),
                    Value::Text(page.cursor.as_deref().unwrap_or_default()),
                    Value::Int(limit as i64 + 1),
                ],
            )
            .await?;
        let mut plugins = Vec::with_capacity(names.len());
        for row in names {
            plugins.extend(plugin(&mut tx, namespace, row.parsed(0)?).await?);
        }
        Ok(Paged::from_surplus(plugins, limit, |plugin| {
            plugin.name.to_string()
        }))
    }

    /// Every version of every plugin of a namespace, in the order of names.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn plugin_versions(
        &self,
        namespace: &Name,
    ) -> Result<Vec<PluginVersion>, CatalogError> {
        let mut tx = self.db.read().await?;
        tx.rows(
            select_versions!("WHERE namespace = $1 ORDER BY name, version"),
            &[Value::Text(namespace.as_str())],
        )
        .await?
        .iter()
        .map(read_version)
        .collect()
    }

    /// The world of a component; none: no version has these bytes.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn world(&self, digest: Digest) -> Result<Option<String>, CatalogError> {
        let mut tx = self.db.read().await?;
        let row = tx
            .row(
                "SELECT world FROM plugin_versions WHERE digest = $1 LIMIT 1",
                &[Value::Text(&digest.to_string())],
            )
            .await?;
        row.map(|row| row.text(0)).transpose()
    }

    /// The world of every component, of all namespaces: for a host that starts with many. One that cannot be read is left out.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn worlds(&self) -> Result<Vec<(Digest, String)>, CatalogError> {
        let mut tx = self.db.read().await?;
        let rows = tx
            .rows("SELECT DISTINCT digest, world FROM plugin_versions", &[])
            .await?;
        let world = |row: &Row| Some((row.parsed(0).ok()?, row.text(1).ok()?));
        Ok(rows.iter().filter_map(world).collect())
    }

    /// Deletes a version, and its bytes unless another version has the same. Old revisions of pipelines may still pin it: they
    /// cannot be rolled back to any more.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] when the current revision of a pipeline pins it, [`CatalogError::NotFound`].
    pub async fn delete_plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version_: &Version,
    ) -> Result<(), CatalogError> {
        let mut tx = self.db.write().await?;
        let existing = version(&mut tx, namespace, name, version_)
            .await?
            .ok_or_else(|| no_version(name, version_))?;
        let text = version_.to_string();
        let key = [
            Value::Text(namespace.as_str()),
            Value::Text(name.as_str()),
            Value::Text(&text),
        ];
        let pipelines = tx
            .rows(
                "SELECT pipeline FROM pipeline_plugins \
                 WHERE namespace = $1 AND plugin = $2 AND version = $3 ORDER BY pipeline",
                &key,
            )
            .await?
            .iter()
            .map(|row| row.parsed(0))
            .collect::<Result<Vec<Name>, _>>()?;
        if !pipelines.is_empty() {
            return Err(CatalogError::InUse {
                what: format!("plugin {name}@{version_}"),
                pipelines,
            });
        }
        tx.execute(
            "DELETE FROM plugin_versions WHERE namespace = $1 AND name = $2 AND version = $3",
            &key,
        )
        .await?;
        tx.execute(
            "DELETE FROM blobs WHERE digest = $1 \
             AND NOT EXISTS (SELECT 1 FROM plugin_versions WHERE digest = $1)",
            &[Value::Text(&existing.digest.to_string())],
        )
        .await?;
        let what = format!("plugin {name}@{version_}");
        tx.record(
            &self.by,
            Act::new("plugin.delete", Some(namespace), what).of(existing.digest),
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// A component's bytes, checked against their digest.
    ///
    /// # Errors
    /// [`CatalogError::CorruptBlob`] when they are not what was uploaded, [`CatalogError::NotFound`].
    pub async fn component(&self, digest: Digest) -> Result<Bytes, CatalogError> {
        let row = {
            let mut tx = self.db.read().await?;
            tx.row(
                "SELECT bytes FROM blobs WHERE digest = $1",
                &[Value::Text(&digest.to_string())],
            )
            .await?
        };
        let row = row.ok_or_else(|| CatalogError::NotFound(format!("component {digest}")))?;
        let (found, bytes) = hash(row.bytes(0)?.into()).await?;
        if found == digest {
            Ok(bytes)
        } else {
            Err(CatalogError::CorruptBlob(digest))
        }
    }
}

/// Stores bytes unless they are there as they should be; answers whether it did.
async fn put_blob(tx: &mut Tx, digest: Digest, bytes: &[u8]) -> Result<bool, CatalogError> {
    let stored = tx
        .row(
            "INSERT INTO blobs (digest, size, bytes) VALUES ($1, $2, $3) \
             ON CONFLICT (digest) DO UPDATE SET size = excluded.size, bytes = excluded.bytes \
             WHERE blobs.bytes <> excluded.bytes RETURNING digest",
            &[
                Value::Text(&digest.to_string()),
                Value::Int(signed(bytes.len() as u64)),
                Value::Bytes(bytes),
            ],
        )
        .await?;
    Ok(stored.is_some())
}

async fn version(
    tx: &mut Tx,
    namespace: &Name,
    name: &Name,
    version: &Version,
) -> Result<Option<PluginVersion>, CatalogError> {
    tx.row(
        select_versions!("WHERE namespace = $1 AND name = $2 AND version = $3"),
        &[
            Value::Text(namespace.as_str()),
            Value::Text(name.as_str()),
            Value::Text(&version.to_string()),
        ],
    )
    .await?
    .as_ref()
    .map(read_version)
    .transpose()
}

async fn plugin(tx: &mut Tx, namespace: &Name, name: Name) -> Result<Option<Plugin>, CatalogError> {
    let mut versions = tx
        .rows(
            select_versions!("WHERE namespace = $1 AND name = $2"),
            &[Value::Text(namespace.as_str()), Value::Text(name.as_str())],
        )
        .await?
        .iter()
        .map(read_version)
        .collect::<Result<Vec<_>, _>>()?;
    versions.sort_by(|a, b| b.version.cmp(&a.version));
    Ok((!versions.is_empty()).then_some(Plugin { name, versions }))
}

fn read_version(row: &Row) -> Result<PluginVersion, CatalogError> {
    Ok(PluginVersion {
        namespace: row.parsed(0)?,
        name: row.parsed(1)?,
        version: row.parsed(2)?,
        digest: row.parsed(3)?,
        world: row.text(4)?,
        imports: row.json(5)?,
        exports: row.json(6)?,
        size: row.unsigned(7)?,
        compile_ms: row.unsigned(8)?,
        created_at: row.time(9)?,
    })
}

fn no_version(name: &Name, version: &Version) -> CatalogError {
    CatalogError::NotFound(format!("plugin {name}@{version}"))
}

/// Hashing tens of megabytes takes tens of milliseconds, which no thread that serves requests should spend.
async fn hash(bytes: Bytes) -> Result<(Digest, Bytes), CatalogError> {
    tokio::task::spawn_blocking(move || (Digest::of(&bytes), bytes))
        .await
        .map_err(|_| CatalogError::unavailable("the host is shutting down"))
}
