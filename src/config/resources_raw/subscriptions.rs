//! `subscriptions:` as checked.

use super::Names;
use crate::config::field::Field;
use crate::config::resources::SubscriptionResource;
use crate::domain::SubscriptionStatus;

const KEYS: &[&str] = &[
    "user",
    "group",
    "enabled",
    "starts_at",
    "expires_at",
    "status",
];

pub(super) fn subscription<'a>(
    item: &Field<'a>,
    names: &mut Names<'a>,
) -> Option<SubscriptionResource> {
    const END: &str = "when it ends, such as 2026-12-01T00:00:00Z";
    let table = item.table(KEYS)?;
    let user = table.required("user", "the name of the user who has it");
    let user = user.and_then(|f| f.name());
    let group = table.required("group", "the name of the group it is to");
    let group = group.and_then(|f| f.name());
    if let (Some(user), Some(group)) = (user, group) {
        // No name has a line break in it.
        names.unique("subscription", format!("{user}\n{group}"), item);
    }
    let starts_at = table.or_null("starts_at", Field::time);
    let end = table.required("expires_at", END);
    let expires_at = end.as_ref().and_then(Field::time);
    if let (Some(start), Some(expires_at), Some(end)) = (starts_at, expires_at, &end)
        && expires_at <= start
    {
        end.bad("not after `starts_at`", END);
    }
    let statuses = [
        SubscriptionStatus::Active,
        SubscriptionStatus::Suspended,
        SubscriptionStatus::Expired,
    ];
    Some(SubscriptionResource {
        enabled: table.or("enabled", true, Field::flag),
        starts_at,
        status: table.or("status", SubscriptionStatus::Active, |f| {
            f.choice(&statuses.map(|status| (status.as_str(), status)))
        }),
        // What stands in for what is missing or wrong is never seen: a mistake was noted.
        user: user.unwrap_or_default().to_string(),
        group: group.unwrap_or_default().to_string(),
        expires_at: expires_at.unwrap_or_default(),
    })
}
