//! Row ids, one type per table so that they cannot be mixed up.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An account: one provider credential we send through.
    AccountId
);
id!(
    /// An API key that we issued.
    ApiKeyId
);
id!(
    /// A group of accounts.
    GroupId
);
id!(
    /// A user: owns keys and a balance.
    UserId
);
id!(
    /// A channel: model mapping, restriction and prices bound to groups.
    ChannelId
);
id!(
    /// A subscription of a user to a group.
    SubscriptionId
);
