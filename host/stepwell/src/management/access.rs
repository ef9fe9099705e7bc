//! Namespaces, tokens and audit records of the catalog in the words of the API, and back.

use stepwell_api::{
    AuditQuery, AuditRecord, Namespace, NewToken, Outcome as Happened, Token, Usage,
};
use stepwell_catalog::{self as catalog, Outcome};

use super::convert::to_catalog;

pub(super) fn namespace(stored: catalog::Namespace) -> Namespace {
    let usage = stored.usage;
    Namespace {
        name: stored.name,
        quotas: stored.quotas.into(),
        usage: Usage {
            plugins: usage.plugins,
            bytes: usage.bytes,
            pipelines: usage.pipelines,
            tokens: usage.tokens,
        },
        created_at: stored.created_at,
    }
}

pub(super) fn token(stored: catalog::Token) -> Token {
    Token {
        id: stored.id,
        name: stored.name,
        role: stored.role,
        namespace: stored.namespace,
        created_by: stored.created_by,
        created_at: stored.created_at,
        expires_at: stored.expires_at,
        last_used_at: stored.last_used_at,
    }
}

pub(super) fn to_new_token(new: &NewToken) -> catalog::NewToken {
    catalog::NewToken {
        name: new.name.clone(),
        role: new.role,
        namespace: new.namespace.clone(),
        expires_at: new.expires_at,
    }
}

pub(super) fn audit_record(stored: catalog::Audited) -> AuditRecord {
    AuditRecord {
        id: stored.id,
        time: stored.time,
        who: stored.who,
        name: stored.who_name,
        action: stored.action,
        namespace: stored.namespace,
        subject: stored.subject,
        digest: stored.digest,
        revision: stored.revision,
        outcome: match stored.outcome {
            Outcome::Done => Happened::Done,
            Outcome::Refused => Happened::Refused,
        },
    }
}

pub(super) fn to_audit_query(query: &AuditQuery) -> catalog::AuditQuery {
    catalog::AuditQuery {
        namespace: query.namespace.clone(),
        since: query.since,
        page: to_catalog(&query.page),
    }
}
