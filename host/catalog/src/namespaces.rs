use std::time::Duration;

use stepwell_core::{ByteSize, Name, Quotas};
use time::OffsetDateTime;

use crate::audit::Act;
use crate::db::{Row, Tx, Value, now, signed};
use crate::{Catalog, CatalogError, Page, Paged};

/// The most namespaces of a catalog: every host keeps all of them in memory.
const MOST: u64 = 10_000;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// What it may use.
    pub quotas: Quotas,
    /// What it keeps.
    pub usage: Usage,
    /// When it was made, to the millisecond.
    pub created_at: OffsetDateTime,
}

/// What a namespace keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Plugin versions.
    pub plugins: u64,
    /// Bytes of all of their components.
    pub bytes: u64,
    /// Pipelines.
    pub pipelines: u64,
    /// Tokens that are confined to it.
    pub tokens: u64,
}

macro_rules! select_namespaces {
    ($rest:literal) => {
        concat!(
            "SELECT n.name, n.plugins, n.bytes, n.pipelines, n.runs_per_second, n.concurrent_runs, n.cpu_ms_per_minute, n.created_at, \
             (SELECT COUNT(*) FROM plugin_versions v WHERE v.namespace = n.name), \
             (SELECT CAST(COALESCE(SUM(v.size), 0) AS BIGINT) FROM plugin_versions v WHERE v.namespace = n.name), \
             (SELECT COUNT(*) FROM pipelines p WHERE p.namespace = n.name AND p.deleted_at IS NULL), \
             (SELECT COUNT(*) FROM tokens t WHERE t.namespace = n.name) FROM namespaces n ",
            $rest
        )
    };
}

impl Catalog {
    /// Every namespace with what it keeps, in the order of their names.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn namespaces(&self, page: &Page) -> Result<Paged<Namespace>, CatalogError> {
        let limit = page.limit();
        let mut tx = self.db.read().await?;
        let rows = tx
            .rows(
                select_namespaces!("WHERE n.name > $1 ORDER BY n.name LIMIT $2"),
                &[
                    Value::Text(page.cursor.as_deref().unwrap_or_default()),
                    Value::Int(limit as i64 + 1),
                ],
            )
            .await?;
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Paged::from_surplus(items, limit, |item| {
            item.name.to_string()
        }))
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn namespace(&self, name: &Name) -> Result<Namespace, CatalogError> {
        find(&mut self.db.read().await?, name).await
    }

    /// Makes a namespace, or changes the quotas of one; answers whether it is new. A quota below what the namespace keeps
    /// takes nothing away: it keeps more from coming.
    ///
    /// # Errors
    /// [`CatalogError::TooMany`] among them.
    pub async fn put_namespace(
        &self,
        name: &Name,
        quotas: &Quotas,
    ) -> Result<(bool, Namespace), CatalogError> {
        let mut tx = self.db.write().await?;
        let is_new = match find(&mut tx, name).await {
            Ok(found) if found.quotas == *quotas => return Ok((false, found)),
            Ok(_) => false,
            Err(CatalogError::NotFound(_)) => true,
            Err(error) => return Err(error),
        };
        if is_new {
            let count = tx.row("SELECT COUNT(*) FROM namespaces", &[]).await?;
            let count = count.map_or(Ok(0), |row| row.unsigned(0))?;
            if count >= MOST {
                let what = "namespaces";
                return Err(CatalogError::TooMany { what, limit: MOST });
            }
        }
        let cpu = quotas.cpu_per_minute.map(|time| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            signed(millis)
        });
        tx.execute(
            "INSERT INTO namespaces \
             (name, plugins, bytes, pipelines, runs_per_second, concurrent_runs, cpu_ms_per_minute, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO UPDATE SET \
             plugins = excluded.plugins, bytes = excluded.bytes, pipelines = excluded.pipelines, \
             runs_per_second = excluded.runs_per_second, concurrent_runs = excluded.concurrent_runs, cpu_ms_per_minute = excluded.cpu_ms_per_minute",
            &[
                Value::Text(name.as_str()),
                Value::Number(quotas.plugins.map(signed)),
                Value::Number(quotas.bytes.map(signed)),
                Value::Number(quotas.pipelines.map(signed)),
                Value::Number(quotas.runs_per_second.map(i64::from)),
                Value::Number(quotas.concurrent_runs.map(i64::from)),
                Value::Number(cpu),
                Value::Int(now()),
            ],
        )
        .await?;
        let stored = find(&mut tx, name).await?;
        tx.access_changed().await?;
        let act = Act::new("namespace.set", Some(name), format!("namespace {name}"));
        tx.record(&self.by, act).await?;
        tx.commit().await?;
        Ok((is_new, stored))
    }

    /// Deletes a namespace that holds nothing.
    ///
    /// # Errors
    /// [`CatalogError::NotEmpty`], [`CatalogError::DefaultNamespace`] and [`CatalogError::NotFound`] among them.
    pub async fn delete_namespace(&self, name: &Name) -> Result<(), CatalogError> {
        if *name == Name::default_namespace() {
            return Err(CatalogError::DefaultNamespace);
        }
        let mut tx = self.db.write().await?;
        let usage = find(&mut tx, name).await?.usage;
        let holds: Vec<String> = [
            (usage.plugins, "plugin version"),
            (usage.pipelines, "pipeline"),
            (usage.tokens, "token"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }))
        .collect();
        if !holds.is_empty() {
            return Err(CatalogError::NotEmpty {
                namespace: name.clone(),
                holds: holds.join(", "),
            });
        }
        tx.execute(
            "DELETE FROM namespaces WHERE name = $1",
            &[Value::Text(name.as_str())],
        )
        .await?;
        tx.access_changed().await?;
        let act = Act::new("namespace.delete", Some(name), format!("namespace {name}"));
        tx.record(&self.by, act).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// A namespace, as this transaction sees it.
pub(crate) async fn find(tx: &mut Tx, name: &Name) -> Result<Namespace, CatalogError> {
    tx.row(
        select_namespaces!("WHERE n.name = $1"),
        &[Value::Text(name.as_str())],
    )
    .await?
    .as_ref()
    .map(read)
    .transpose()?
    .ok_or_else(|| missing(name))
}

/// What a namespace may use; that it is there is thereby known.
pub(crate) async fn quotas(tx: &mut Tx, name: &Name) -> Result<Quotas, CatalogError> {
    let row = tx
        .row(
            "SELECT plugins, bytes, pipelines, runs_per_second, concurrent_runs, cpu_ms_per_minute FROM namespaces WHERE name = $1",
            &[Value::Text(name.as_str())],
        )
        .await?
        .ok_or_else(|| missing(name))?;
    read_quotas(&row, 0)
}

/// Whether the namespace has room for one more plugin version of this size.
pub(crate) async fn admit(tx: &mut Tx, name: &Name, size: u64) -> Result<(), CatalogError> {
    let quotas = quotas(tx, name).await?;
    if quotas.plugins.is_none() && quotas.bytes.is_none() {
        // Counting takes longer the more there is.
        return Ok(());
    }
    let usage = find(tx, name).await?.usage;
    let exceeded = |quota, numbers| exceeded(name, quota, numbers);
    if let Some(most) = quotas.plugins.filter(|most| usage.plugins >= *most) {
        let numbers = [most, usage.plugins, 1].map(|count| count.to_string());
        return Err(exceeded("plugins", numbers));
    }
    let bytes = usage.bytes.saturating_add(size);
    if let Some(most) = quotas.bytes.filter(|most| bytes > *most) {
        let sizes = [most, usage.bytes, size].map(|bytes| ByteSize(bytes).to_string());
        return Err(exceeded("bytes", sizes));
    }
    Ok(())
}

/// Whether the namespace has room for one more pipeline; `most` is how many it may keep.
pub(crate) async fn admit_pipeline(
    tx: &mut Tx,
    name: &Name,
    most: u64,
) -> Result<(), CatalogError> {
    let row = tx
        .row(
            "SELECT COUNT(*) FROM pipelines WHERE namespace = $1 AND deleted_at IS NULL",
            &[Value::Text(name.as_str())],
        )
        .await?;
    let used = row.map_or(Ok(0), |row| row.unsigned(0))?;
    if used >= most {
        let numbers = [most, used, 1].map(|count| count.to_string());
        return Err(exceeded(name, "pipelines", numbers));
    }
    Ok(())
}

fn exceeded(
    namespace: &Name,
    quota: &'static str,
    [value, used, adding]: [String; 3],
) -> CatalogError {
    CatalogError::QuotaExceeded {
        namespace: namespace.clone(),
        quota,
        value,
        used,
        adding,
    }
}

fn missing(name: &Name) -> CatalogError {
    CatalogError::NotFound(format!("namespace {name}"))
}

/// The quotas in the six columns from this one on.
pub(crate) fn read_quotas(row: &Row, from: usize) -> Result<Quotas, CatalogError> {
    let small = |column| -> Result<Option<u32>, CatalogError> {
        let number = row.optional_unsigned(column)?;
        Ok(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    };
    Ok(Quotas {
        plugins: row.optional_unsigned(from)?,
        bytes: row.optional_unsigned(from + 1)?,
        pipelines: row.optional_unsigned(from + 2)?,
        runs_per_second: small(from + 3)?,
        concurrent_runs: small(from + 4)?,
        cpu_per_minute: row.optional_unsigned(from + 5)?.map(Duration::from_millis),
    })
}

fn read(row: &Row) -> Result<Namespace, CatalogError> {
    Ok(Namespace {
        name: row.parsed(0)?,
        quotas: read_quotas(row, 1)?,
        created_at: row.time(7)?,
        usage: Usage {
            plugins: row.unsigned(8)?,
            bytes: row.unsigned(9)?,
            pipelines: row.unsigned(10)?,
            tokens: row.unsigned(11)?,
        },
    })
}
