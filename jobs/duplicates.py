def duplicate_positions(config, dataset, identity, backlog):
    return {}

def duplicated_in_store(dataset, records):
    return []
