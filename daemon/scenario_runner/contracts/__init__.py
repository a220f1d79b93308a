"""Wire models, canonical JSON, identities, reason codes and errors. Pure: nothing here touches the outside."""
