use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use stepwell_core::{Digest, Name, Principal, Quotas, Role, Secret};
use time::OffsetDateTime;

use crate::audit::Act;
use crate::db::{Row, Tx, Value, millis, now};
use crate::{Catalog, CatalogError, Page, Paged, namespaces};

/// What every token starts with, so that scanners of sources and logs find one that got lost.
const PREFIX: &str = "sw_";
/// Characters of 256 random bits after the prefix.
const LENGTH: usize = 43;
/// The most tokens of a catalog: every host keeps all of them in memory.
const MOST: u64 = 10_000;

/// A token to make.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Where; none: in every namespace.
    pub namespace: Option<Name>,
    /// From when on it is not valid any more.
    pub expires_at: Option<OffsetDateTime>,
}

/// A token, without its value: nobody has that but its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is revoked by.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Where; none: in every namespace.
    pub namespace: Option<Name>,
    /// The id of who made it.
    pub created_by: String,
    /// When, to the millisecond.
    pub created_at: OffsetDateTime,
    /// From when on it is not valid any more.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was last used, to a few minutes.
    pub last_used_at: Option<OffsetDateTime>,
}

impl Token {
    /// Who bears it.
    pub fn principal(&self) -> Principal {
        Principal {
            id: self.id.as_str().into(),
            name: self.name.as_str().into(),
            role: self.role,
            namespace: self.namespace.clone(),
        }
    }
}

/// Namespaces and tokens at one moment.
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) access: u64,
    /// None: they are what they were when `access` was last this.
    pub(crate) entries: Option<Entries>,
}

pub(crate) struct Entries {
    pub(crate) tokens: Vec<(Digest, Token)>,
    pub(crate) namespaces: HashMap<Name, Quotas>,
}

macro_rules! select_tokens {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, role, namespace, created_by, created_at, expires_at, last_used_at, hash FROM tokens ",
            $rest
        )
    };
}

impl Catalog {
    /// Makes a token, and answers its value: the only time that anybody can.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] of the namespace and [`CatalogError::TooMany`] among them.
    pub async fn create_token(&self, new: &NewToken) -> Result<(Token, Secret), CatalogError> {
        let value = Secret::new(format!(
            "{PREFIX}{}",
            BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?)
        ));
        let id = format!("t{}", hex::encode(random::<8>()?));
        let mut tx = self.db.write().await?;
        if let Some(namespace) = &new.namespace {
            namespaces::quotas(&mut tx, namespace).await?;
        }
        let count = tx.row("SELECT COUNT(*) FROM tokens", &[]).await?;
        if count.map_or(Ok(0), |row| row.unsigned(0))? >= MOST {
            let what = "tokens";
            return Err(CatalogError::TooMany { what, limit: MOST });
        }
        tx.execute(
            "INSERT INTO tokens (id, name, hash, role, namespace, created_by, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                Value::Text(&id),
                Value::Text(&new.name),
                Value::Text(&hash(value.expose()).to_string()),
                Value::Text(new.role.as_str()),
                Value::Word(new.namespace.as_ref().map(Name::as_str)),
                Value::Text(&self.by.id),
                Value::Int(now()),
                Value::Number(new.expires_at.map(millis)),
            ],
        )
        .await?;
        tx.access_changed().await?;
        let token = find(&mut tx, &id).await?;
        let subject = format!("token {id} ({})", new.role);
        let act = Act::new("token.create", new.namespace.as_ref(), subject);
        tx.record(&self.by, act).await?;
        tx.commit().await?;
        Ok((token, value))
    }

    /// Every token that was not revoked, in the order of their ids.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn tokens(&self, page: &Page) -> Result<Paged<Token>, CatalogError> {
        let limit = page.limit();
        let mut tx = self.db.read().await?;
        let rows = tx
            .rows(
                select_tokens!("WHERE id > $1 ORDER BY id LIMIT $2"),
                &[
                    Value::Text(page.cursor.as_deref().unwrap_or_default()),
                    Value::Int(limit as i64 + 1),
                ],
            )
            .await?;
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Paged::from_surplus(items, limit, |item| item.id.clone()))
    }

    /// One token.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn token(&self, id: &str) -> Result<Token, CatalogError> {
        find(&mut self.db.read().await?, id).await
    }

    /// Revokes a token: no host that hears of it takes it any more.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn revoke_token(&self, id: &str) -> Result<(), CatalogError> {
        let mut tx = self.db.write().await?;
        let token = find(&mut tx, id).await?;
        tx.execute("DELETE FROM tokens WHERE id = $1", &[Value::Text(id)])
            .await?;
        tx.access_changed().await?;
        let subject = format!("token {id} ({})", token.role);
        let act = Act::new("token.revoke", token.namespace.as_ref(), subject);
        tx.record(&self.by, act).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Notes when tokens were last used; no host need know at once.
    pub(crate) async fn note_use(&self, used: &HashMap<String, i64>) -> Result<(), CatalogError> {
        let mut tx = self.db.write().await?;
        for (id, at) in used {
            tx.execute(
                "UPDATE tokens SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)",
                &[Value::Text(id), Value::Int(*at)],
            )
            .await?;
        }
        tx.commit_quietly().await
    }

    /// Namespaces and tokens as they are now, unless they are still as they were at `known`.
    pub(crate) async fn access(&self, known: Option<u64>) -> Result<Snapshot, CatalogError> {
        let mut tx = self.db.read().await?;
        let state = tx
            .row(
                "SELECT generation, access FROM catalog_state WHERE id = 1",
                &[],
            )
            .await?
            .ok_or_else(|| CatalogError::Corrupt("catalog_state has no row".to_owned()))?;
        let (generation, access) = (state.unsigned(0)?, state.unsigned(1)?);
        if known == Some(access) {
            return Ok(Snapshot {
                generation,
                access,
                entries: None,
            });
        }
        let tokens = tx.rows(select_tokens!("ORDER BY id"), &[]).await?;
        let namespaces = tx
            .rows(
                "SELECT name, plugins, bytes, pipelines, runs_per_second, concurrent_runs, cpu_ms_per_minute FROM namespaces",
                &[],
            )
            .await?;
        let entries = Entries {
            tokens: tokens
                .iter()
                .map(|row| Ok((row.parsed(8)?, read(row)?)))
                .collect::<Result<_, CatalogError>>()?,
            namespaces: namespaces
                .iter()
                .map(|row| Ok((row.parsed(0)?, namespaces::read_quotas(row, 1)?)))
                .collect::<Result<_, CatalogError>>()?,
        };
        Ok(Snapshot {
            generation,
            access,
            entries: Some(entries),
        })
    }
}

impl Tx {
    /// Lets every host know that namespaces or tokens have changed.
    pub(crate) async fn access_changed(&mut self) -> Result<(), CatalogError> {
        self.execute(
            "UPDATE catalog_state SET access = access + 1 WHERE id = 1",
            &[],
        )
        .await
    }
}

/// What a token is stored as. Its 256 random bits need no salt and no slow hash: there is nothing to guess.
pub(crate) fn hash(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

/// Whether a text may be a token; anything else need not be looked for.
pub(crate) fn is_well_formed(token: &str) -> bool {
    token.strip_prefix(PREFIX).is_some_and(|rest| {
        rest.len() == LENGTH
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

fn random<const N: usize>() -> Result<[u8; N], CatalogError> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| CatalogError::Refused("random numbers", Box::new(error)))?;
    Ok(bytes)
}

async fn find(tx: &mut Tx, id: &str) -> Result<Token, CatalogError> {
    // A text with a NUL is no text to PostgreSQL.
    let shown: String = id.chars().filter(|c| !c.is_control()).take(64).collect();
    let missing = || CatalogError::NotFound(format!("token {shown}"));
    if shown != id {
        return Err(missing());
    }
    tx.row(select_tokens!("WHERE id = $1"), &[Value::Text(id)])
        .await?
        .as_ref()
        .map(read)
        .transpose()?
        .ok_or_else(missing)
}

fn read(row: &Row) -> Result<Token, CatalogError> {
    Ok(Token {
        id: row.text(0)?,
        name: row.text(1)?,
        role: row.parsed(2)?,
        namespace: row.optional_parsed(3)?,
        created_by: row.text(4)?,
        created_at: row.time(5)?,
        expires_at: row.optional_time(6)?,
        last_used_at: row.optional_time(7)?,
    })
}
