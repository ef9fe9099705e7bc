use stepwell_core::{Digest, Name, Principal};
use time::OffsetDateTime;

use crate::db::{Row, Tx, Value, millis, now, signed};
use crate::{Catalog, CatalogError, Page, Paged};

/// The newest records, which are kept however old they are: a clock that is wrong for a while must not wipe the log.
const KEPT: i64 = 1_000;
/// The most records that are kept however young they are: some hundred MB.
const MOST: i64 = 1_000_000;

/// A record of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// Grows with time.
    pub id: u64,
    /// When, to the millisecond.
    pub time: OffsetDateTime,
    /// The principal's id.
    pub who: String,
    /// The principal's name, as it was then.
    pub who_name: String,
    /// What was done, such as `plugin.put`; of a refused request, its operation.
    pub action: String,
    /// Where; none: in no single namespace.
    pub namespace: Option<Name>,
    /// To what, such as `plugin decode@1.0.0`.
    pub subject: String,
    /// Of the component, where there is one.
    pub digest: Option<Digest>,
    /// Of the pipeline, where there is one.
    pub revision: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of something that was audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The principal had no right to it.
    Refused,
}

impl Outcome {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Those of this namespace; none: all.
    pub namespace: Option<Name>,
    /// Those that are not older.
    pub since: Option<OffsetDateTime>,
    /// Which part of them.
    pub page: Page,
}

impl Catalog {
    /// Records of the audit log, the newest first.
    ///
    /// # Errors
    /// [`CatalogError`]. A cursor that this has not given out starts at the newest.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Paged<Audited>, CatalogError> {
        let limit = query.page.limit();
        let cursor = query.page.cursor.as_deref();
        let before = cursor.and_then(|cursor| cursor.parse().ok());
        let since = query.since.map_or(i64::MIN, millis);
        let mut values = vec![
            Value::Int(before.unwrap_or(i64::MAX)),
            Value::Int(since),
            Value::Int(limit as i64 + 1),
        ];
        let mut tx = self.db.read().await?;
        // Two statements, so that each has its index.
        let rows = if let Some(namespace) = &query.namespace {
            values.push(Value::Text(namespace.as_str()));
            tx.rows(
                "SELECT id, at, who, who_name, action, namespace, subject, digest, revision, outcome FROM audit \
                 WHERE id < $1 AND at >= $2 AND namespace = $4 ORDER BY id DESC LIMIT $3",
                &values,
            )
            .await?
        } else {
            tx.rows(
                "SELECT id, at, who, who_name, action, namespace, subject, digest, revision, outcome FROM audit \
                 WHERE id < $1 AND at >= $2 ORDER BY id DESC LIMIT $3",
                &values,
            )
            .await?
        };
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Paged::from_surplus(items, limit, |item| {
            item.id.to_string()
        }))
    }

    /// Records that this catalog's principal was refused an operation. The record belongs to the principal's own namespace:
    /// that of another would tell its deployers who this is.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn record_refusal(
        &self,
        operation: &'static str,
        subject: String,
    ) -> Result<(), CatalogError> {
        let namespace = self.by.namespace.as_ref();
        self.refuse(Act::new(operation, namespace, subject)).await
    }

    /// Records that this catalog's principal was refused what others have. The record belongs to no namespace: those who were refused
    /// would learn from it what is there.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn record_withheld(
        &self,
        operation: &'static str,
        subject: String,
    ) -> Result<(), CatalogError> {
        self.refuse(Act::new(operation, None, subject)).await
    }

    async fn refuse(&self, mut act: Act) -> Result<(), CatalogError> {
        act.outcome = Outcome::Refused;
        let mut tx = self.db.write().await?;
        tx.record(&self.by, act).await?;
        tx.commit_quietly().await
    }

    /// Deletes records that are older than this, except the newest thousand; and of the others, those beyond the newest million.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn forget_audit(&self, before: OffsetDateTime) -> Result<(), CatalogError> {
        self.forget_audit_within(before, KEPT, MOST).await
    }

    async fn forget_audit_within(
        &self,
        before: OffsetDateTime,
        kept: i64,
        most: i64,
    ) -> Result<(), CatalogError> {
        let mut tx = self.db.write().await?;
        // Numbers of records follow each other, so that nothing has to be counted.
        tx.execute(
            "DELETE FROM audit WHERE at < $1 AND id <= (SELECT MAX(id) FROM audit) - $2",
            &[Value::Int(millis(before)), Value::Int(kept)],
        )
        .await?;
        tx.execute(
            "DELETE FROM audit WHERE id <= (SELECT MAX(id) FROM audit) - $1",
            &[Value::Int(most)],
        )
        .await?;
        tx.commit_quietly().await
    }
}

/// Something that is done in a transaction, and recorded with it.
pub(crate) struct Act {
    who: Option<Principal>,
    action: &'static str,
    namespace: Option<Name>,
    subject: String,
    digest: Option<Digest>,
    revision: Option<u64>,
    outcome: Outcome,
}

impl Act {
    pub(crate) fn new(action: &'static str, namespace: Option<&Name>, subject: String) -> Self {
        Self {
            who: None,
            action,
            namespace: namespace.cloned(),
            subject,
            digest: None,
            revision: None,
            outcome: Outcome::Done,
        }
    }

    pub(crate) fn of(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    pub(crate) fn at(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Tells the log what has happened.
    pub(crate) fn log(&self) {
        let who = self.who.as_ref();
        tracing::info!(
            target: "audit",
            who = who.map(|who| &*who.id),
            name = who.map(|who| &*who.name),
            action = self.action,
            namespace = self.namespace.as_ref().map(Name::as_str),
            subject = self.subject,
            digest = self.digest.map(tracing::field::display),
            revision = self.revision,
            outcome = self.outcome.as_str(),
        );
    }
}

impl Tx {
    /// Records an act: it lasts if the transaction does.
    pub(crate) async fn record(
        &mut self,
        by: &Principal,
        mut act: Act,
    ) -> Result<(), CatalogError> {
        let digest = act.digest.map(|digest| digest.to_string());
        self.execute(
            "INSERT INTO audit (at, who, who_name, action, namespace, subject, digest, revision, outcome) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[
                Value::Int(now()),
                Value::Text(&by.id),
                Value::Text(&by.name),
                Value::Text(act.action),
                Value::Word(act.namespace.as_ref().map(Name::as_str)),
                Value::Text(&act.subject),
                Value::Word(digest.as_deref()),
                Value::Number(act.revision.map(signed)),
                Value::Text(act.outcome.as_str()),
            ],
        )
        .await?;
        act.who = Some(by.clone());
        self.acts.push(act);
        Ok(())
    }
}

fn read(row: &Row) -> Result<Audited, CatalogError> {
    Ok(Audited {
        id: row.unsigned(0)?,
        time: row.time(1)?,
        who: row.text(2)?,
        who_name: row.text(3)?,
        action: row.text(4)?,
        namespace: row.optional_parsed(5)?,
        subject: row.text(6)?,
        digest: row.optional_parsed(7)?,
        revision: row.optional_unsigned(8)?,
        outcome: match row.text(9)?.as_str() {
            "refused" => Outcome::Refused,
            _ => Outcome::Done,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Location;

    #[tokio::test]
    async fn the_newest_records_are_kept_and_never_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(directory.path().join("catalog.sqlite"));
        let catalog = Catalog::new(&location).unwrap();
        for number in 0..10 {
            let subject = number.to_string();
            catalog.record_refusal("test", subject).await.unwrap();
        }
        let left = async || {
            let found = catalog.audit(&AuditQuery::default()).await.unwrap();
            let subjects = found.items.into_iter().map(|record| record.subject);
            subjects.collect::<Vec<_>>()
        };
        let now = OffsetDateTime::now_utc();
        // Far in the future, all of them are old.
        let future = now + Duration::from_secs(100 * 86_400);
        catalog.forget_audit(future).await.unwrap();
        assert_eq!(left().await.len(), 10);
        catalog.forget_audit_within(future, 4, 8).await.unwrap();
        assert_eq!(left().await, ["9", "8", "7", "6"]);
        let past = now - Duration::from_secs(86_400);
        catalog.forget_audit_within(past, 1, 3).await.unwrap();
        assert_eq!(left().await, ["9", "8", "7"]);
    }
}
